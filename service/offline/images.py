"""Finds the images of a run: in folders, by patterns, in lists, and with labels in a dataset."""

import csv
import difflib
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from models.labels import Label
from service.preprocessing.decode import SUFFIXES

_LISTS = (".txt", ".csv")
_PATHS = ("path", "file")
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


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images that were found, and the number of image files that were skipped (see `_is_skipped`)."""

    images: tuple[ImageFile, ...]
    skipped: int


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
    `skipped` image files are no part of it (see `_is_skipped`).
    """

    name: str
    images: tuple[tuple[str, Path, WrittenLabel], ...]
    sha256: str
    skipped: int = 0

    def files(self, labels: Sequence[Label], model: str) -> list[ImageFile]:
        """The images with the class ids of their labels among `labels`, the classes of `model`.

        Raises OfflineError if a label matches no class, or several.
        """
        classes = _ClassLookup(labels)
        found = {written: classes.find(written) for written in dict.fromkeys(label for _, _, label in self.images)}
        if unknown := [written for written, class_id in found.items() if class_id is None]:
            some = "; ".join(f"{one.form} {one.text!r}{classes.hint(one)}" for one in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise OfflineError(f"{model} does not know: {some}{more}; nothing was run{_shift_of(found, len(labels))}")
        return [ImageFile(name, path, found[label]) for name, path, label in self.images]


def find_images(arguments: Sequence[str]) -> FoundImages:
    """The images that `arguments` name, in that order, each once. The name of an image is its path as it was found.

    An argument is a folder (every image file below it, sorted), a list (a .txt with a path per line, a .csv with the
    column `path`), any other file, or a pattern (`**` matches any depth). Files of folders and patterns are images by
    their suffix, except in hidden folders and those of tools. Raises OfflineError if an argument names no image.
    """
    found: dict[str, ImageFile] = {}
    skipped: list[Path] = []
    for argument in arguments:
        for path in _images_of(argument, skipped):
            found.setdefault(os.path.normpath(path.absolute()), ImageFile(str(path), path))
    return FoundImages(tuple(found.values()), len(set(skipped)))


def read_dataset(source: Path) -> Dataset:
    """The labelled images of a folder with a folder for each class, or of a CSV.

    The CSV has a column `path` (or `file`), relative to its own folder or else to the working directory, and one or
    more of `wnid`, `class_id` and `label`; the first that is filled in counts. Raises OfflineError if there is no
    image, or an image has no label or two.
    """
    skipped: list[Path] = []
    if source.is_dir():
        images = _in_class_folders(source, skipped)
    elif source.suffix.lower() == ".csv" and source.is_file():
        images = _in_table(source)
    else:
        raise OfflineError(f"{source} is neither a folder nor a .csv file; {_LAYOUT}")
    if not images:
        raise OfflineError(f"{source} has no images; {_LAYOUT}")
    return Dataset(printable(source.resolve().name), tuple(images), _fingerprint(images), len(skipped))


def printable(name: str) -> str:
    """The name of a file in valid UTF-8: other bytes become `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def skipped_line(count: int) -> str | None:
    """The line that tells a person how many image files were skipped, None if none was."""
    many = f"{count:,} image files are" if count != 1 else "1 image file is"
    return f"{many} skipped: hidden, or in folders of tools such as __MACOSX and @eaDir" if count else None


def _images_of(argument: str, skipped: list[Path]) -> Iterable[Path]:
    """The images that `argument` names. Those that are skipped are added to `skipped`."""
    path = Path(argument)
    if path.is_dir():
        images = list(_below(path, path, skipped))
        problem = f"no image below the folder {argument}; looked for {', '.join(sorted(SUFFIXES))}"
    elif path.suffix.lower() in _LISTS and path.is_file():
        images = [_located(name, path) for name in _listed(path)]
        problem = f"the list {argument} names no image"
    elif path.exists():
        return [path]
    elif glob.has_magic(argument):
        matches = (Path(name) for name in sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207
        files = [match for match in matches if _is_image(match) and not match.is_dir()]
        named = set(path.parts)  # a part that the pattern itself spells is wanted
        images = [file for file in files if not _is_skipped(part for part in file.parts if part not in named)]
        skipped += set(files).difference(images)
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


def _is_skipped(parts: Iterable[str]) -> bool:
    """Whether a path with those parts is no photo of a person: hidden, or in a folder that a tool made."""
    return any(part.startswith(".") or part.lower() in _TOOL_FOLDERS for part in parts)


def _below(folder: Path, root: Path, skipped: list[Path]) -> Iterator[Path]:
    """Every image file below `folder`, sorted within each folder. Those that are skipped go into `skipped`.

    `root` is the folder that a person named: only what lies below it is skipped by its name. Links to folders are
    followed, and no folder is read twice. Raises OfflineError if a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        if not _is_skipped(Path(error.filename).relative_to(root).parts):
            raise OfflineError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in filter(_is_image, (Path(parent, name) for name in sorted(names))):
            if _is_skipped(path.relative_to(root).parts):
                skipped.append(path)
            else:
                yield path


def _located(name: str, list_file: Path) -> Path:
    """A path in a list, relative to the list's folder, or to the working directory if it exists only there."""
    beside = list_file.parent / name
    there = os.path.exists  # unlike Path.exists it takes names that no file can have
    return beside if there(beside) or not there(name) else Path(name)


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


def _in_class_folders(folder: Path, skipped: list[Path]) -> list[tuple[str, Path, WrittenLabel]]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise OfflineError(f"{folder} cannot be read: {error.strerror}") from error
    loose = [child for child in children if _is_image(child) and child.is_file()]
    for child in loose:
        if not _is_skipped([child.name]):
            raise OfflineError(f"{child} is in no class folder; {_LAYOUT}")
    skipped += loose
    return [
        (str(image.relative_to(folder)), image, WrittenLabel(LabelForm.TEXT, child.name))
        for child in children
        if child.is_dir()
        for image in _below(child, folder, skipped)
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


def _shift_of(found: Mapping[WrittenLabel, int | None], classes: int) -> str:
    """Why class ids are probably off by one: the largest is the number of classes. Empty if nothing says so."""
    ids = {int(written.text) for written in found if written.text.isascii() and written.text.isdecimal()}
    if max(ids, default=0) != classes:
        return ""
    if 0 in ids:
        return (
            f"; class ids 0 to {classes} are those of {classes + 1} classes, of which 0 usually is the background: "
            "leave that out, and subtract 1 from the others"
        )
    return "; the class ids probably count from 1, and those of the model from 0: subtract 1"


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
