"""Entries of .safetensors files, through the package of that name, which is imported only when it is used."""
from .. import _files


def _package():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("a .safetensors file needs the package safetensors: pip install 'fastbn[convert]'") from error
    return safetensors


def read(path, choose):
    """{name: array} from a file. choose(keys of the file): {name: key} of what to read; nothing else of the file is.

    Raises OSError, ImportError, ValueError (no such file, damaged), and what choose raises.
    """
    safetensors = _package()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(key) for name, key in choose(list(file.keys())).items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no .safetensors file, or it is damaged ({error})") from error


def write(path, arrays):
    """Raises OSError, ImportError; a failure leaves an older file as it was."""
    content = _package().numpy.save(arrays)
    with _files.replacing(path) as file:
        file.write(content)
