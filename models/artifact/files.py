"""Files that other processes read: replaced in one step, so that nobody sees half of one; and whose home `~` is."""

import os
import tempfile
from pathlib import Path

_MODE = 0o644  # a server may run as another user than the export


def at_home(path: Path) -> Path:
    """`path` with the home of the user in the place of `~`.

    Who has none, as a bare number for a user in a container, is at home in `/`; a user who is not there is no user but
    a name, as for a shell.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        return Path("/", *path.parts[1:]) if path.parts[0] == "~" else path


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path`, which keeps its mode; a new file is readable by all.

    An interruption leaves what was there, and nothing beside it. Raises OSError where the folder cannot be written.
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
