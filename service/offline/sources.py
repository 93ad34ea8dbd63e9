"""Which images a run is about: those of folders, of patterns, of lists, and single files."""

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from service.offline.rows import BulkError, Item
from service.preprocessing.decode import SUFFIXES

_LISTS = (".txt", ".csv")
_COLUMN = "path"


def find(arguments: Sequence[str]) -> list[Item]:
    """The images that `arguments` mean, in that order, each once; rows go by the paths as they are found.

    An argument is a folder (every image file below it, by suffix, sorted), a list (.txt with a path per line, .csv with
    the column `path`), any other file, or a pattern (`**` for any depth; of what it matches, the image files). Raises
    BulkError where one of them has no image, saying what was looked for.
    """
    found: dict[str, Item] = {}
    for argument in arguments:
        for path in _expanded(argument):
            found.setdefault(os.path.normpath(path.absolute()), Item(str(path), path))
    return list(found.values())


def is_image(path: Path) -> bool:
    """Whether its suffix is that of a format which is served."""
    return path.suffix.lower() in SUFFIXES


def below(folder: Path) -> Iterator[Path]:
    """Every image file below `folder`, sorted within each folder. Raises BulkError where a folder cannot be read."""

    def refuse(error: OSError) -> None:
        raise BulkError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if is_image(path := Path(parent, name)):
                yield path


def printable(name: str) -> str:
    """The name of a file in UTF-8, with bytes that are none written out as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def located(name: str, listed_in: Path) -> Path:
    """The file that a list means: from the list's own folder, or from the working directory where it is only there."""
    beside = listed_in.parent / name
    return beside if beside.exists() or not Path(name).exists() else Path(name)


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a CSV, bytes that are not UTF-8 kept as they are. Raises BulkError."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, csv.Error) as error:
        raise BulkError(f"{path} cannot be read: {error}") from error


def _expanded(argument: str) -> Iterable[Path]:
    path = Path(argument)
    if path.is_dir():
        images = list(below(path))
        looked_for = f"no image below the folder {argument}; looked for {', '.join(sorted(SUFFIXES))}"
    elif path.suffix.lower() in _LISTS and path.is_file():
        images = [located(name, path) for name in _listed(path)]
        looked_for = f"the list {argument} names no image"
    elif path.exists():
        return [path]
    elif glob.has_magic(argument):
        matches = (Path(name) for name in sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207
        images = [match for match in matches if is_image(match) and not match.is_dir()]
        looked_for = f"no image matches {argument}; looked for {', '.join(sorted(SUFFIXES))}"
    else:
        raise BulkError(
            f"{argument} does not exist; give a folder, an image, a pattern in quotes, or a .txt or .csv list"
        )
    if not images:
        raise BulkError(looked_for)
    return images


def _listed(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        columns, rows = read_table(path)
        if _COLUMN not in columns:
            raise BulkError(f"{path} has no column {_COLUMN!r}, only {', '.join(columns) or 'nothing'}")
        return [row[_COLUMN] for row in rows if row[_COLUMN]]
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise BulkError(f"{path} cannot be read: {error.strerror}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]
