"""Files that are written whole or not at all, and files that are read."""
import contextlib
import errno
import os
import secrets
import stat


def opened(path):
    """A regular file, opened to be read. Raises OSError, ValueError (a pipe or device: opening one would wait)."""
    kind = os.stat(path).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", path)
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path} is not a regular file: it is read more than once, which a pipe or device cannot be")
    return open(path, "rb")


@contextlib.contextmanager
def replacing(path, durable=False):
    """Gives a new binary file beside `path`, which is renamed to it at the end.

    Where the block raises, or the process is killed, the file of that name is as it was; the new one is removed (after
    SIGKILL it stays, under a name that begins with a dot and ends with ".part"). durable: it is on the disk before it is
    renamed, so that not even a crash of the system leaves half a file. A symbolic link is followed, and the permissions
    of an older file are kept. Raises OSError.
    """
    path = os.path.realpath(os.fsdecode(path))
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(4)}.part")
    file = _created(temporary, path)
    try:
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(path).st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(folder)


def _created(temporary, path):
    """The file, readable and writable. Its error names `path`, since nobody knows the other name."""
    try:
        return open(temporary, "x+b")
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from None


def _sync_folder(folder):
    """So that the new name is on the disk too, where a system has that for folders and lets us read this one."""
    if os.name != "posix" or not os.access(folder, os.R_OK):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
