"""scikit-learn's StandardScaler, computed by fastbn: fastbn.sklearn.StandardScaler takes its place, import apart."""
try:
    from sklearn.utils.validation import validate_data as _validate_data  # since 1.6, the oldest that is supported
except ImportError as error:
    raise ImportError("fastbn.sklearn needs the package scikit-learn, 1.6 or later: pip install "
                      "'fastbn[sklearn]'") from error
del _validate_data

from ._scaler import StandardScaler  # noqa: E402

__all__ = ["StandardScaler"]
