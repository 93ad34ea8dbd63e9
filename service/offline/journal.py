"""Stores the results of a run in an SQLite file, so that the next run does only what is missing."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from service.common.errors import Code
from service.common.types import Prediction
from service.offline.images import ImageFile, OfflineError

_RETRIED = Code.INTERNAL  # an engine that failed may well answer in the next run
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)  # SQLITE_ERROR: its tables are others


@dataclass(frozen=True, slots=True)
class ImageError:
    """Why an image has no predictions: an error code, or `unreadable` if its file cannot be read."""

    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The predictions for one image, best class first, or its error. `truth` is the class id of its label."""

    path: str
    error: ImageError | None
    predictions: tuple[Prediction, ...] = ()
    truth: int | None = None


class Journal:
    """The results of one run, by the names of the images.

    A result is in the file when `append` returns, even if the process is killed right then. Raises OfflineError if the
    file is from a run with another `setup`, is no journal, is damaged, or is open in another process.
    """

    def __init__(self, path: Path, setup: Mapping[str, object]) -> None:
        self.path = path
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = _connect(path)
            try:
                self._prepare(json.loads(json.dumps(dict(setup))))
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def append(self, result: ImageResult) -> None:
        """Store the result of one image. Raises OfflineError if the disk is full."""
        error = (None, None) if result.error is None else astuple(result.error)
        row = os.fsencode(result.path), result.truth, *error, json.dumps([astuple(one) for one in result.predictions])
        with _explained(self.path):
            self._database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", row)

    def results(self, images: Iterable[ImageFile]) -> Iterator[ImageResult]:
        """The results of those images, in their order. None of them may be missing."""
        query = "SELECT truth, code, detail, predictions FROM results WHERE path = ?"
        for image in images:
            with _explained(self.path):
                truth, code, detail, predictions = self._database.execute(query, (os.fsencode(image.name),)).fetchone()
            error = None if code is None else ImageError(code, detail)
            yield ImageResult(image.name, error, tuple(Prediction(*one) for one in json.loads(predictions)), truth)

    def missing(self, images: Iterable[ImageFile]) -> list[ImageFile]:
        """The images that have no result yet."""
        with _explained(self.path):
            stored = {path for (path,) in self._database.execute("SELECT path FROM results")}
        return [image for image in images if os.fsencode(image.name) not in stored]

    def _prepare(self, setup: dict[str, object]) -> None:
        """Create the tables in a new file, or check that an earlier run had the same setup."""
        database = self._database
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            database.execute("BEGIN")
            database.execute("CREATE TABLE setup (content TEXT NOT NULL)")
            columns = "path BLOB PRIMARY KEY, truth INTEGER, code TEXT, detail TEXT, predictions TEXT NOT NULL"
            database.execute(f"CREATE TABLE results ({columns})")
            database.execute("INSERT INTO setup VALUES (?)", (json.dumps(setup),))
            database.execute("COMMIT")
        (content,) = database.execute("SELECT content FROM setup").fetchone()
        before = json.loads(content)
        if differing := [key for key in {**before, **setup} if before.get(key) != setup.get(key)]:
            what = ", ".join(f"{key} was {before.get(key)} and is now {setup.get(key)}" for key in differing)
            raise OfflineError(
                f"{self.path} belongs to a run of other settings: {what}; "
                "give the same ones to resume it, --overwrite to start again, or another --out"
            )
        database.execute("DELETE FROM results WHERE code = ?", (_RETRIED,))


def delete_journal(path: Path) -> None:
    """Delete the journal of an earlier run, whatever the file holds. Does nothing if there is none.

    Raises OfflineError if another process has it open, or if it cannot be deleted.
    """
    if not path.exists():
        return
    with _explained(path):
        try:
            _connect(path).close()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise
        for end in ("", "-wal"):  # a process that was killed leaves a write-ahead log
            path.with_name(path.name + end).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, or create it, and lock it for this process. A commit does not wait for the disk."""
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")  # takes the lock
        database.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the file into OfflineError, with a remedy."""
    try:
        yield
    except OSError as error:
        raise OfflineError(f"{path} cannot be written: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            problem = f"another topfive is writing {path}; wait for it or choose another --out"
        elif error.sqlite_errorcode in _DAMAGED:
            problem = f"{path} is no journal, or damaged ({error}); --overwrite starts again, or choose another --out"
        else:
            problem = f"{path} cannot be written: {error}"
        raise OfflineError(problem) from error
