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
_TABLES = """
CREATE TABLE IF NOT EXISTS setup (content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    path BLOB PRIMARY KEY, truth INTEGER, code TEXT, detail TEXT, predictions TEXT NOT NULL
);
"""


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
    """The results of one run, by the names of the images. With `overwrite` those of an earlier run are deleted.

    A result is in the file when `append` returns, even if the process is killed right then. Raises OfflineError if the
    file is from a run with another `setup`, is no journal, is damaged, or is open in another process.
    """

    def __init__(self, path: Path, setup: Mapping[str, object], overwrite: bool = False) -> None:
        self.path = path
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for end in ("", "-wal") if overwrite else ():  # a process that was killed leaves a write-ahead log
                path.with_name(path.name + end).unlink(missing_ok=True)
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
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
        """Lock the file for this process, create the tables, and check that an earlier run had the same setup."""
        database = self._database
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")  # takes the lock
        database.execute("PRAGMA synchronous = NORMAL")  # a commit does not wait for the disk
        database.executescript(_TABLES)
        found = database.execute("SELECT content FROM setup").fetchone()
        if found is None:
            database.execute("INSERT INTO setup VALUES (?)", (json.dumps(setup),))
        before = setup if found is None else json.loads(found[0])
        if differing := [key for key in {**before, **setup} if before.get(key) != setup.get(key)]:
            what = ", ".join(f"{key} was {before.get(key)} and is now {setup.get(key)}" for key in differing)
            raise OfflineError(
                f"{self.path} belongs to a run of other settings: {what}; "
                "give the same ones to resume it, --overwrite to start again, or another --out"
            )
        database.execute("DELETE FROM results WHERE code = ?", (_RETRIED,))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the file into OfflineError, with a remedy."""
    try:
        yield
    except OSError as error:
        raise OfflineError(f"{path} cannot be written: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise OfflineError(f"another topfive is writing {path}; wait for it or choose another --out") from error
        raise OfflineError(f"{path}: {error}; --overwrite starts again, or choose another --out") from error
