"""The record of a run that may end at any moment: a line for the settings, then a line for each finished image."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from service.common.errors import Code
from service.offline.rows import BulkError, Row

_BEGINNING = b'{"settings": {'
_AGAIN = (Code.INTERNAL,)  # what may well be answered when it is run again


class Journal:
    """Appends rows to `path`, and knows which are there from before.

    A row is in the file once `append` has returned, whatever happens to the process. A last line without its end is
    cut off when the file is opened: its image counts as not run. Rows lie on disk; memory holds only where.
    Raises BulkError where the file belongs to a run of other `settings`, is damaged, or is being written elsewhere.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BulkError(f"{path} cannot be written: {error.strerror}") from error
        try:
            _lock(self._file, path)
            self._end = self._read(settings)
            os.ftruncate(self._file, self._end)
            if not self._end:
                self._write({"settings": dict(settings)})
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def append(self, row: Row) -> None:
        """Add one finished image. Raises BulkError where the disk takes no more."""
        place = self._end
        self._write(row.to_json())
        self._places[row.path] = place

    def rows(self, names: Iterable[str]) -> Iterator[Row]:
        """The rows of those images, in that order. Raises KeyError where one has not been run."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            for name in names:
                file.seek(self._places[name])
                yield Row.from_json(json.loads(file.readline()))

    def _read(self, settings: Mapping[str, object]) -> int:
        """Note the rows that are there; where the last whole line ends."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if not line.endswith(b"\n"):
                        _check_torn(number, line)
                        break
                    content = json.loads(line)
                    if number == 1:
                        self._check(content["settings"], settings)
                    else:
                        self._note(Row.from_json(content), end)
                except (ValueError, KeyError, TypeError) as error:
                    raise BulkError(
                        f"{self.path} is damaged in line {number}; begin anew with --overwrite or choose another --out"
                    ) from error
                end += len(line)
        return end

    def _note(self, row: Row, place: int) -> None:
        if row.error is None or row.error.code not in _AGAIN:
            self._places[row.path] = place

    def _check(self, present: dict[str, Any], settings: Mapping[str, object]) -> None:
        wanted = json.loads(json.dumps(dict(settings)))
        differing = [key for key in {**present, **wanted} if present.get(key) != wanted.get(key)]
        if differing:
            what = ", ".join(f"{key} was {present.get(key)} and is now {wanted.get(key)}" for key in differing)
            raise BulkError(
                f"{self.path} belongs to a run of other settings: {what}; "
                "give the same ones to go on, --overwrite to begin anew, or another --out"
            )

    def _write(self, content: Mapping[str, object]) -> None:
        line = json.dumps(content).encode() + b"\n"  # ASCII: bytes of a path that are no UTF-8 are kept as escapes
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError as error:
            raise BulkError(f"{self.path} cannot be written: {error.strerror}") from error
        self._end += len(line)


def discard(path: Path) -> None:
    """Remove a journal, if there is one. Raises BulkError where a run is writing it, or it cannot be removed."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BulkError(f"{path} cannot be written: {error.strerror}") from error
    try:
        _lock(file, path)
        path.unlink()
    except OSError as error:
        raise BulkError(f"{path} cannot be removed: {error.strerror}") from error
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> None:
    """Be alone with it. Raises BulkError where another run is, or has put it away since it was opened."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = os.path.samestat(os.fstat(file), path.stat())
    except (BlockingIOError, FileNotFoundError):
        alone = False
    if not alone:
        raise BulkError(f"another topfive is writing {path}; wait for it or choose another --out")


def _check_torn(number: int, line: bytes) -> None:
    """Raise ValueError where an unfinished first line is not one of ours, so that no other file is overwritten."""
    if number == 1 and not line.startswith(_BEGINNING[: len(line)]):
        raise ValueError("not a journal")
