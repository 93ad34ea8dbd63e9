"""Images with their labels, from class folders or a CSV, and what those labels mean to a model."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from models.labels import Label
from service.offline.rows import BulkError, Item
from service.offline.sources import below, is_image, located, printable, read_table

_PATHS = ("path", "file")
_SHOWN = 5  # unknown labels named in one error
_WNID = re.compile(r"n\d{8}")
_LAYOUT = (
    "expected a folder for each class, named by its wnid, its label or its class id: "
    "DIR/n02123045/a.jpg, DIR/tiger_cat/b.jpg, DIR/281/c.jpg; or a CSV with the columns path,label"
)


class Form(StrEnum):
    """How a label is written. TEXT is what a folder or a column `label` holds: a wnid, a label or a class id."""

    WNID = "wnid"
    CLASS_ID = "class_id"
    TEXT = "label"


@dataclass(frozen=True, slots=True)
class Truth:
    """What somebody wrote about an image."""

    form: Form
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images by name with what they show. `sha256` is a fingerprint of the names, labels and sizes, not of pixels;
    `name` is what the folder or the table is called."""

    name: str
    images: tuple[tuple[str, Path, Truth], ...]
    sha256: str

    def items(self, labels: Sequence[Label], model: str) -> list[Item]:
        """The images with their classes in that model. Raises BulkError where it knows a label not, or twice."""
        classes = _Classes(labels)
        found: dict[Truth, int] = {}
        unknown: dict[Truth, None] = {}
        for _, _, truth in self.images:
            if truth in found or truth in unknown:
                continue
            if (class_id := classes.find(truth)) is None:
                unknown[truth] = None
            else:
                found[truth] = class_id
        if unknown:
            some = [f"{truth.form} {truth.text!r}{classes.nearest(truth)}" for truth in list(unknown)[:_SHOWN]]
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise BulkError(f"{model} does not know: {'; '.join(some)}{more}; nothing was run")
        return [Item(name, file, found[truth]) for name, file, truth in self.images]


def read_dataset(source: Path) -> Dataset:
    """The dataset in a folder of class folders, or in a CSV.

    Columns of the CSV: `path` (or `file`), relative to the CSV's folder or else to the working directory, and `wnid`,
    `class_id` or `label`; where there are several the first of them that is filled in counts. Raises BulkError where
    there is no image, or one without a label or with two.
    """
    if source.is_dir():
        images = _in_folders(source)
    elif source.suffix.lower() == ".csv" and source.is_file():
        images = _in_table(source)
    else:
        raise BulkError(f"{source} is neither a folder nor a .csv file; {_LAYOUT}")
    if not images:
        raise BulkError(f"{source} has no images; {_LAYOUT}")
    return Dataset(printable(source.resolve().name), tuple(images), _fingerprint(images))


def _in_folders(folder: Path) -> list[tuple[str, Path, Truth]]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise BulkError(f"{folder} cannot be read: {error.strerror}") from error
    for child in children:
        if is_image(child) and child.is_file():
            raise BulkError(f"{child} is in no class folder; {_LAYOUT}")
    return [
        (str(image.relative_to(folder)), image, Truth(Form.TEXT, child.name))
        for child in children
        if child.is_dir()
        for image in below(child)
    ]


def _in_table(path: Path) -> list[tuple[str, Path, Truth]]:
    columns, rows = read_table(path)
    names = next((name for name in _PATHS if name in columns), None)
    forms = [form for form in Form if form in columns]
    if names is None or not forms:
        raise BulkError(
            f"{path} has the columns {', '.join(map(repr, columns)) or '(none)'}; "
            f"needed are {' or '.join(_PATHS)}, and {' or '.join(Form)}, in UTF-8 with commas between them"
        )
    found: dict[str, tuple[str, Path, Truth]] = {}
    for number, row in enumerate(rows, start=2):
        name, truth = row[names], next((Truth(form, row[form].strip()) for form in forms if row[form].strip()), None)
        if not name or truth is None:
            raise BulkError(f"{path}: row {number} has no {'path' if not name else 'label'}")
        if found.setdefault(name, (name, located(name, path), truth))[2] != truth:
            raise BulkError(f"{path}: {name} has two labels, {found[name][2].text!r} and {truth.text!r}")
    return list(found.values())


def _fingerprint(images: Iterable[tuple[str, Path, Truth]]) -> str:
    digest = hashlib.sha256()
    for name, file, truth in sorted(images, key=lambda image: image[0]):
        try:
            size = str(file.stat().st_size)
        except OSError:
            size = "missing"
        digest.update("\0".join((name, truth.form, truth.text, size, "")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _Classes:
    """The classes of a model by each way to write them."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._by_wnid = {label.wnid: label.class_id for label in labels if label.wnid}
        self._by_text: dict[str, list[int]] = {}
        for label in labels:
            self._by_text.setdefault(_plain(label.label), []).append(label.class_id)

    def find(self, truth: Truth) -> int | None:
        """The class id, or None where there is none. Raises BulkError where a text means several."""
        if truth.form is Form.WNID:
            return self._by_wnid.get(truth.text)
        if truth.form is Form.CLASS_ID:
            return self._numbered(truth.text)
        if truth.text in self._by_wnid:
            return self._by_wnid[truth.text]
        several = self._by_text.get(_plain(truth.text), [])
        if len(several) > 1:
            names = " or ".join(self._labels[class_id].wnid or str(class_id) for class_id in several)
            raise BulkError(f"the label {truth.text!r} means several classes; write {names} instead; nothing was run")
        return several[0] if several else self._numbered(truth.text)

    def nearest(self, truth: Truth) -> str:
        """A hint to what may have been meant."""
        if truth.form is Form.CLASS_ID or truth.text.isdecimal():
            return f" (class ids are 0 to {len(self._labels) - 1})"
        if _WNID.fullmatch(truth.text):
            return "" if self._by_wnid else " (its classes have no wnids)"
        close = difflib.get_close_matches(_plain(truth.text), self._by_text, n=1)
        return f" (did you mean {self._labels[self._by_text[close[0]][0]].label!r}?)" if close else ""

    def _numbered(self, text: str) -> int | None:
        return int(text) if text.isascii() and text.isdecimal() and int(text) < len(self._labels) else None


def _plain(text: str) -> str:
    """A label without regard to case, and with spaces for underscores."""
    return " ".join(text.replace("_", " ").casefold().split())
