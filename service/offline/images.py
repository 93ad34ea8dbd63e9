"""Finds the images of a run: in folders, in lists, and with labels in a dataset."""

import csv
import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models.labels import Label
from service.preprocessing.decode import SUFFIXES

_PATHS = ("path", "file")
_WNID, _CLASS_ID, _LABEL = "wnid", "class_id", "label"
_LABELS = (_WNID, _CLASS_ID, _LABEL)
_TOOL_FOLDERS = frozenset(
    (
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__macosx",
    )
)  # of file servers and archives, in lower case; they hold previews, copies and deleted files
_SHOWN = 5  # unknown labels that one error names
_LAYOUT = (
    "expected a folder for each class, named by its wnid, its label or its class id: "
    "DIR/n02123045/a.jpg, DIR/tiger_cat/b.jpg, DIR/281/c.jpg; or a CSV with the columns path,label"
)


class OfflineError(Exception):
    """A run cannot start or continue. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a run. `name` is its key in the results; `truth` is the class id of its label, or None."""

    name: str
    path: Path
    truth: int | None = None


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images that were found, and the number of image files that were skipped (see `_is_skipped`)."""

    images: tuple[ImageFile, ...]
    skipped: int


class LabelledImage(NamedTuple):
    """An image with its label as the dataset writes it: `column` is wnid, class_id, or label, which may be any."""

    name: str
    path: Path
    column: str
    label: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images.

    `sha256` is a fingerprint of names, labels and file sizes, not of pixels. `name` is the name of the folder or CSV.
    `skipped` image files are no part of it (see `_is_skipped`).
    """

    name: str
    images: tuple[LabelledImage, ...]
    sha256: str
    skipped: int = 0

    def files(self, labels: Sequence[Label], model: str) -> list[ImageFile]:
        """The images with the class ids of their labels among `labels`, the classes of `model`.

        Raises OfflineError if a label matches no class, or several.
        """
        classes = _ClassLookup(labels)
        written = dict.fromkeys((image.column, image.label) for image in self.images)
        found = {one: classes.find(*one) for one in written}
        if unknown := [text for (_, text), ids in found.items() if not ids]:
            some = ", ".join(f"{text!r}{classes.hint(text)}" for text in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            what = f"{some}{more}; it has the class ids 0 to {len(labels) - 1}"
            raise OfflineError(f"{model} does not know {what}{_off_by_one(written, len(labels))}; nothing was run")
        for (_, text), ids in found.items():
            if len(ids) > 1:
                names = " or ".join(labels[class_id].wnid or str(class_id) for class_id in ids)
                raise OfflineError(f"the label {text!r} means several classes; write {names} instead; nothing was run")
        return [ImageFile(image.name, image.path, found[image.column, image.label][0]) for image in self.images]


def find_images(arguments: Sequence[str]) -> FoundImages:
    """The images that `arguments` name, in that order, each once. The name of an image is its path as it was found.

    An argument is a folder (every image file below it, sorted, by its suffix; except in hidden folders and those of
    tools), a .txt with a path per line, or any other file. Raises OfflineError if an argument names no image.
    """
    found: dict[str, ImageFile] = {}
    skipped = 0
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            images, passed = _below(path)
            skipped += passed
        elif path.suffix.lower() == ".txt" and path.is_file():
            images = _listed(path)
        elif path.exists():
            images = [path]
        else:
            raise OfflineError(f"{argument} does not exist; give a folder, an image, or a .txt with a path per line")
        if not images:
            raise OfflineError(f"no image in {argument}; looked for {', '.join(sorted(SUFFIXES))}")
        for image in images:
            found.setdefault(os.path.normpath(image.absolute()), ImageFile(str(image), image))
    return FoundImages(tuple(found.values()), skipped)


def read_dataset(source: Path) -> Dataset:
    """The labelled images of a folder with a folder for each class, or of a CSV.

    The CSV has a column `path` (or `file`), relative to its own folder or else to the working directory, and one or
    more of `wnid`, `class_id` and `label`; the first that is filled in counts. Raises OfflineError if there is no
    image, or an image has no label or two.
    """
    skipped = 0
    if source.is_dir():
        images, skipped = _in_class_folders(source)
    elif source.suffix.lower() == ".csv" and source.is_file():
        images = _in_table(source)
    else:
        raise OfflineError(f"{source} is neither a folder nor a .csv file; {_LAYOUT}")
    if not images:
        raise OfflineError(f"{source} has no images; {_LAYOUT}")
    return Dataset(printable(source.resolve().name), tuple(images), _fingerprint(images), skipped)


def printable(name: str) -> str:
    """The name of a file in valid UTF-8: other bytes become `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def skipped_line(count: int) -> str | None:
    """The line that tells a person how many image files were skipped, None if none was."""
    many = f"{count:,} image files are" if count != 1 else "1 image file is"
    return f"{many} skipped: hidden, or in folders of tools such as __MACOSX and @eaDir" if count else None


def _is_skipped(parts: Iterable[str]) -> bool:
    """Whether a path with those parts is no photo of a person: hidden, or in a folder that a tool made."""
    return any(part.startswith(".") or part.lower() in _TOOL_FOLDERS for part in parts)


def _below(root: Path) -> tuple[list[Path], int]:
    """Every image file below `root`, sorted within each folder, and the number of those that are skipped.

    Links to folders are followed, and no folder is read twice. Raises OfflineError if a folder cannot be read.
    """
    images: list[Path] = []
    skipped = 0
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        if not _is_skipped(Path(error.filename).relative_to(root).parts):
            raise OfflineError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        paths = [Path(parent, name) for name in sorted(names)]
        found = [path for path in paths if path.suffix.lower() in SUFFIXES]
        kept = [path for path in found if not _is_skipped(path.relative_to(root).parts)]
        images += kept
        skipped += len(found) - len(kept)
    return images, skipped


def _located(name: str, list_file: Path) -> Path:
    """A path in a list, relative to the list's folder, or to the working directory if it exists only there."""
    beside = list_file.parent / name
    there = os.path.exists  # unlike Path.exists it takes names that no file can have
    return beside if there(beside) or not there(name) else Path(name)


def _listed(path: Path) -> list[Path]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error.strerror}") from error
    return [_located(line.strip(), path) for line in text.split("\n") if line.strip()]


def _in_class_folders(root: Path) -> tuple[list[LabelledImage], int]:
    paths, skipped = _below(root)
    images = []
    for path in paths:
        name = path.relative_to(root)
        if len(name.parts) == 1:
            raise OfflineError(f"{path} is in no class folder; {_LAYOUT}")
        images.append(LabelledImage(str(name), path, _LABEL, name.parts[0]))
    return images, skipped


def _in_table(path: Path) -> list[LabelledImage]:
    """The rows of a CSV. Bytes that are not UTF-8 stay in the names of files as surrogate escapes."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, csv.Error) as error:
        raise OfflineError(f"{path} cannot be read: {error}") from error
    path_column = next((name for name in _PATHS if name in columns), None)
    label_columns = [name for name in _LABELS if name in columns]
    if path_column is None or not label_columns:
        raise OfflineError(
            f"{path} has the columns {', '.join(map(repr, columns)) or '(none)'}; "
            f"needed are {' or '.join(_PATHS)}, and {' or '.join(_LABELS)}, in UTF-8 with commas between them"
        )
    found: dict[str, LabelledImage] = {}
    for number, row in enumerate(rows, start=2):
        name = row[path_column]
        column = next((one for one in label_columns if row[one].strip()), None)
        if not name or column is None:
            raise OfflineError(f"{path}: row {number} has no {'label' if name else 'path'}")
        image = LabelledImage(name, _located(name, path), column, row[column].strip())
        if found.setdefault(name, image) != image:
            raise OfflineError(f"{path}: {name} has two labels, {found[name].label!r} and {image.label!r}")
    return list(found.values())


def _off_by_one(written: Iterable[tuple[str, str]], classes: int) -> str:
    """Why class ids are probably off by one: the largest is the number of classes. Empty if nothing says so."""
    largest = max((int(text) for _, text in written if text.isascii() and text.isdecimal()), default=0)
    if largest != classes:
        return ""
    return ", so those of the labels probably count from 1, or have a background class 0: subtract 1"


def _fingerprint(images: Iterable[LabelledImage]) -> str:
    digest = hashlib.sha256()
    for name, file, column, label in sorted(images):
        try:
            size = str(file.stat().st_size)
        except (OSError, ValueError):
            size = "missing"
        digest.update("\0".join((name, column, label, size, "")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _ClassLookup:
    """Finds the classes of a model by a label."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._by_wnid = {label.wnid: [label.class_id] for label in labels if label.wnid}
        self._by_text: dict[str, list[int]] = {}
        for label in labels:
            self._by_text.setdefault(_normalised(label.label), []).append(label.class_id)

    def find(self, column: str, text: str) -> list[int]:
        """The class ids that a label may mean, written in that column."""
        number = [int(text)] if text.isascii() and text.isdecimal() and int(text) < len(self._labels) else []
        if column == _CLASS_ID:
            return number
        wnid = self._by_wnid.get(text, [])
        return wnid if column == _WNID or wnid else self._by_text.get(_normalised(text), number)

    def hint(self, text: str) -> str:
        """A guess at what an unknown label meant, for an error message."""
        close = difflib.get_close_matches(_normalised(text), self._by_text, n=1)
        return f" (did you mean {self._labels[self._by_text[close[0]][0]].label!r}?)" if close else ""


def _normalised(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())
