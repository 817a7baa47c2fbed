"""scikit-learn's StandardScaler: the scaling of inference without gamma and beta, and moments. One thread, by NumPy.

Its checks of the input for NaN and of its own parameters are switched off, as its documentation offers for speed.
"""
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from bench.cases import EPS
from bench.peers.work import Work


class ScikitLearn:
    name = "sklearn"

    def __init__(self):
        import sklearn
        from sklearn.preprocessing import StandardScaler
        self.sklearn, self.StandardScaler = sklearn, StandardScaler

    def version(self):
        return self.sklearn.__version__

    @contextmanager
    def session(self, threads):
        with self.sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            yield

    def can(self, case, output):
        """It takes tables, so channels-last by a view; it has no out=, only copy=False in place."""
        return (case.operation in ("inference", "moments") and case.layout != "first" and output == "fresh"
                and not case.is_half)

    def work(self, case, data, output, threads):
        x = data.x.reshape(-1, case.features)
        if case.operation == "moments":
            return Work("StandardScaler().fit(x)", dict(StandardScaler=self.StandardScaler, x=x))
        scaler = self.StandardScaler().fit(x[:1])
        scaler.mean_, scaler.var_ = data.mean, data.var
        scaler.scale_ = np.sqrt(data.var + EPS)
        return Work("transform(x)", dict(transform=scaler.transform, x=x))

    def arrays(self, case, result):
        if case.operation == "moments":
            return result.mean_, result.var_
        return (result.reshape(case.array_shape),)

    def reference_data(self, case, data):
        ones = np.ones_like(data.gamma)
        return SimpleNamespace(**{**vars(data), "gamma": ones, "beta": np.zeros_like(ones)})
