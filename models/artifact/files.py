"""Files that other processes read: written in one step, and locked where several processes write."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MODE = 0o644  # a server may run as another user than the export


def expand_home(path: Path) -> Path:
    """`path` with the user's home folder in place of `~`.

    A user without a home, such as a bare number in a container, has `/`. The name of an unknown user stays as it is.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        return Path("/", *path.parts[1:]) if path.parts[0] == "~" else path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step; an interruption leaves the old file and nothing beside it.

    An old file keeps its mode; a new file is readable by all. Raises OSError where the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(path.stat().st_mode & 0o777 if path.exists() else _MODE)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on `folder`: other processes that lock it wait until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
