"""Writes files that other processes read in one step, and locks those that several processes write."""

import fcntl
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MODE = 0o644  # a server may run as another user than the export

log = logging.getLogger(__name__)


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

    An old file keeps its mode; a new file is readable by all. Raises OSError if the folder cannot be written.
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


class CacheFile:
    """A cache file: it is replaced in one step, and read only if it is undamaged.

    Its first line is the sha256 of the rest. A warning says what is wrong with it, and after that `without`: what
    happens in its absence.
    """

    def __init__(self, path: Path, without: str) -> None:
        self.path = path
        self._without = without

    def read(self) -> bytes | None:
        """The content. None if there is no file, and if it cannot be read or is damaged."""
        try:
            digest, _, content = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read (%s); %s", self.path, error.strerror, self._without)
            return None
        if digest != _digest(content):
            log.warning("%s is damaged; %s", self.path, self._without)
            return None
        return content

    def write(self, content: bytes) -> None:
        """Replace the content, unless it is the same. A failure is a warning."""
        sealed = _digest(content) + b"\n" + content
        try:
            if self.path.is_file() and self.path.read_bytes() == sealed:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, sealed)
        except OSError as error:
            log.warning("%s cannot be written (%s); %s", self.path, error.strerror, self._without)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def file_name(*parts: str) -> str:
    """A name for a file, made of these words. Everything but letters, digits and dots becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(parts))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on `folder`: other processes that lock it wait until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
