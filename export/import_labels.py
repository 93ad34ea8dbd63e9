"""The class names of an imported network: from a CSV or a list of lines, or where none is given what can be assumed."""

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from models.labels import Label, imagenet_labels

_COLUMNS = {"class_id", "wnid", "label"}


class LabelsError(Exception):
    """The file of labels does not fit; the message says which row or how many."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A row per class, and what a reader must know of where they come from; empty where the user gave them."""

    rows: tuple[Label, ...]
    note: str = ""


def labels_for(classes: int, path: Path | None) -> Labels:
    """The labels in `path`, or without one those that `classes` suggests. Raises LabelsError."""
    if path is None:
        if classes == 1000:
            return Labels(
                imagenet_labels(),
                "1000 classes are taken to be ImageNet-1k in the order of the competition; if not, give --labels",
            )
        rows = tuple(Label(index, "", f"class {index}") for index in range(classes))
        return Labels(rows, f"the {classes} classes have no names: they are called class 0 and so on; give --labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path} is not text in UTF-8: {error}") from error
    found = _lines(text) if path.suffix == ".txt" else _rows(text, path)
    if len(found) != classes:
        raise LabelsError(f"{path} has {len(found)} labels, and the network {classes} classes; give one for each")
    if empty := [label.class_id for label in found if not label.label]:
        raise LabelsError(f"{path} has no label for class {empty[0]}")
    return Labels(found)


def _lines(text: str) -> tuple[Label, ...]:
    return tuple(Label(index, "", line.strip()) for index, line in enumerate(text.rstrip().splitlines()))


def _rows(text: str, path: Path) -> tuple[Label, ...]:
    """From a CSV with the column label, and where they are there class_id (0, 1, 2, ... in any order) and wnid."""
    table = csv.DictReader(StringIO(text, newline=""), restval="")
    columns = set(table.fieldnames or ())
    if "label" not in columns or columns - _COLUMNS:
        raise LabelsError(
            f"{path} has the columns {', '.join(table.fieldnames or ()) or 'none'}; "
            "there must be label, and there may be class_id and wnid (a .txt has a name per line)"
        )
    rows = []
    for index, row in enumerate(table):
        written = row.get("class_id", str(index)).strip()
        if not (written.isascii() and written.isdecimal()):
            raise LabelsError(f"{path} has the class_id {written!r} in row {index + 1}; it counts 0, 1, 2, ...")
        rows.append(Label(int(written), row.get("wnid", "").strip(), row["label"].strip()))
    rows.sort(key=lambda label: label.class_id)
    if [label.class_id for label in rows] != list(range(len(rows))):
        raise LabelsError(f"{path}: class_id must be each of 0 to {len(rows) - 1} once")
    return tuple(rows)
