"""Finds the images of a run: in folders, by patterns, in lists, and with labels in a dataset."""

import csv
import difflib
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from models.labels import Label
from service.preprocessing.decode import SUFFIXES

_LISTS = (".txt", ".csv")
_PATHS = ("path", "file")
_SHOWN = 5  # unknown labels that one error names
_WNID = re.compile(r"n\d{8}")
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


class LabelForm(StrEnum):
    """How a label is written, and the CSV column that holds it. TEXT may be any of the others."""

    WNID = "wnid"
    CLASS_ID = "class_id"
    TEXT = "label"


@dataclass(frozen=True, slots=True)
class WrittenLabel:
    """The label of an image as the dataset gives it."""

    form: LabelForm
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images: the name, path and label of each.

    `sha256` is a fingerprint of names, labels and file sizes, not of pixels. `name` is the name of the folder or CSV.
    """

    name: str
    images: tuple[tuple[str, Path, WrittenLabel], ...]
    sha256: str

    def files(self, labels: Sequence[Label], model: str) -> list[ImageFile]:
        """The images with the class ids of their labels among `labels`, the classes of `model`.

        Raises OfflineError if a label matches no class, or several.
        """
        classes = _ClassLookup(labels)
        found = {written: classes.find(written) for written in dict.fromkeys(label for _, _, label in self.images)}
        if unknown := [written for written, class_id in found.items() if class_id is None]:
            some = "; ".join(f"{one.form} {one.text!r}{classes.hint(one)}" for one in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise OfflineError(f"{model} does not know: {some}{more}; nothing was run")
        return [ImageFile(name, path, found[label]) for name, path, label in self.images]


def find_images(arguments: Sequence[str]) -> list[ImageFile]:
    """The images that `arguments` name, in that order, each once. The name of an image is its path as it was found.

    An argument is a folder (every image file below it, sorted), a list (a .txt with a path per line, a .csv with the
    column `path`), any other file, or a pattern (`**` matches any depth). Files of folders and patterns are images by
    their suffix. Raises OfflineError if an argument names no image.
    """
    found: dict[str, ImageFile] = {}
    for argument in arguments:
        for path in _images_of(argument):
            found.setdefault(os.path.normpath(path.absolute()), ImageFile(str(path), path))
    return list(found.values())


def read_dataset(source: Path) -> Dataset:
    """The labelled images of a folder with a folder for each class, or of a CSV.

    The CSV has a column `path` (or `file`), relative to its own folder or else to the working directory, and one or
    more of `wnid`, `class_id` and `label`; the first that is filled in counts. Raises OfflineError if there is no
    image, or an image has no label or two.
    """
    if source.is_dir():
        images = _in_class_folders(source)
    elif source.suffix.lower() == ".csv" and source.is_file():
        images = _in_table(source)
    else:
        raise OfflineError(f"{source} is neither a folder nor a .csv file; {_LAYOUT}")
    if not images:
        raise OfflineError(f"{source} has no images; {_LAYOUT}")
    return Dataset(printable(source.resolve().name), tuple(images), _fingerprint(images))


def printable(name: str) -> str:
    """The name of a file in valid UTF-8: other bytes become `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _images_of(argument: str) -> Iterable[Path]:
    path = Path(argument)
    if path.is_dir():
        images = list(_below(path))
        problem = f"no image below the folder {argument}; looked for {', '.join(sorted(SUFFIXES))}"
    elif path.suffix.lower() in _LISTS and path.is_file():
        images = [_located(name, path) for name in _listed(path)]
        problem = f"the list {argument} names no image"
    elif path.exists():
        return [path]
    elif glob.has_magic(argument):
        matches = (Path(name) for name in sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207
        images = [match for match in matches if _is_image(match) and not match.is_dir()]
        problem = f"no image matches {argument}; looked for {', '.join(sorted(SUFFIXES))}"
    else:
        raise OfflineError(
            f"{argument} does not exist; give a folder, an image, a pattern in quotes, or a .txt or .csv list"
        )
    if not images:
        raise OfflineError(problem)
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _below(folder: Path) -> Iterator[Path]:
    """Every image file below `folder`, sorted within each folder. Raises OfflineError if a folder cannot be read."""

    def refuse(error: OSError) -> None:
        raise OfflineError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from filter(_is_image, (Path(parent, name) for name in sorted(names)))


def _located(name: str, list_file: Path) -> Path:
    """A path in a list, relative to the list's folder, or to the working directory if it exists only there."""
    beside = list_file.parent / name
    return beside if beside.exists() or not Path(name).exists() else Path(name)


def _listed(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        columns, rows = _read_table(path)
        if "path" not in columns:
            raise OfflineError(f"{path} has no column 'path', only {', '.join(columns) or 'nothing'}")
        return [row["path"] for row in rows if row["path"]]
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error.strerror}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a CSV. Bytes that are not UTF-8 stay in the names of files as surrogate escapes."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, restval="", restkey="")
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, csv.Error) as error:
        raise OfflineError(f"{path} cannot be read: {error}") from error


def _in_class_folders(folder: Path) -> list[tuple[str, Path, WrittenLabel]]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise OfflineError(f"{folder} cannot be read: {error.strerror}") from error
    if loose := [child for child in children if _is_image(child) and child.is_file()]:
        raise OfflineError(f"{loose[0]} is in no class folder; {_LAYOUT}")
    return [
        (str(image.relative_to(folder)), image, WrittenLabel(LabelForm.TEXT, child.name))
        for child in children
        if child.is_dir()
        for image in _below(child)
    ]


def _in_table(path: Path) -> list[tuple[str, Path, WrittenLabel]]:
    columns, rows = _read_table(path)
    path_column = next((name for name in _PATHS if name in columns), None)
    forms = [form for form in LabelForm if form in columns]
    if path_column is None or not forms:
        raise OfflineError(
            f"{path} has the columns {', '.join(map(repr, columns)) or '(none)'}; "
            f"needed are {' or '.join(_PATHS)}, and {' or '.join(LabelForm)}, in UTF-8 with commas between them"
        )
    found: dict[str, tuple[str, Path, WrittenLabel]] = {}
    for number, row in enumerate(rows, start=2):
        name = row[path_column]
        label = next((WrittenLabel(form, row[form].strip()) for form in forms if row[form].strip()), None)
        if not name or label is None:
            raise OfflineError(f"{path}: row {number} has no {'label' if name else 'path'}")
        if found.setdefault(name, (name, _located(name, path), label))[2] != label:
            raise OfflineError(f"{path}: {name} has two labels, {found[name][2].text!r} and {label.text!r}")
    return list(found.values())


def _fingerprint(images: Iterable[tuple[str, Path, WrittenLabel]]) -> str:
    digest = hashlib.sha256()
    for name, file, label in sorted(images, key=lambda image: image[0]):
        try:
            size = str(file.stat().st_size)
        except OSError:
            size = "missing"
        digest.update("\0".join((name, label.form, label.text, size, "")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _ClassLookup:
    """Finds the class of a model by a label."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._by_wnid = {label.wnid: label.class_id for label in labels if label.wnid}
        self._by_text: dict[str, list[int]] = {}
        for label in labels:
            self._by_text.setdefault(_normalised(label.label), []).append(label.class_id)

    def find(self, written: WrittenLabel) -> int | None:
        """The class id, None if there is no such class. Raises OfflineError if several classes have that label."""
        if written.form is LabelForm.CLASS_ID:
            return self._by_number(written.text)
        if written.form is LabelForm.WNID or written.text in self._by_wnid:
            return self._by_wnid.get(written.text)
        several = self._by_text.get(_normalised(written.text), [])
        if len(several) > 1:
            names = " or ".join(self._labels[class_id].wnid or str(class_id) for class_id in several)
            raise OfflineError(
                f"the label {written.text!r} means several classes; write {names} instead; nothing was run"
            )
        return several[0] if several else self._by_number(written.text)

    def hint(self, written: WrittenLabel) -> str:
        """A guess at what an unknown label meant, for an error message."""
        if written.form is LabelForm.CLASS_ID or written.text.isdecimal():
            return f" (class ids are 0 to {len(self._labels) - 1})"
        if _WNID.fullmatch(written.text):
            return "" if self._by_wnid else " (its classes have no wnids)"
        close = difflib.get_close_matches(_normalised(written.text), self._by_text, n=1)
        return f" (did you mean {self._labels[self._by_text[close[0]][0]].label!r}?)" if close else ""

    def _by_number(self, text: str) -> int | None:
        return int(text) if text.isascii() and text.isdecimal() and int(text) < len(self._labels) else None


def _normalised(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())
