"""The class labels of an imported network: from a CSV, from a list of lines, or assumed if none are given."""

import csv
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from export.common import ExportError
from models.labels import Label, imagenet_labels


class LabelsError(ExportError):
    """The file of labels does not fit; the message names the row or the count."""


@dataclass(frozen=True, slots=True)
class ImportLabels:
    """A label for each class, and a note on what is assumed, empty if the user gives the labels."""

    rows: tuple[Label, ...]
    note: str = ""


def labels_for(classes: int, path: Path | None) -> ImportLabels:
    """The labels in `path`, or without a file the ones that `classes` suggests. Raises LabelsError."""
    if path is None:
        if classes == 1000:
            return ImportLabels(
                imagenet_labels(),
                "1000 classes are taken to be ImageNet-1k in the order of the competition; if not, give --labels",
            )
        rows = tuple(Label(index, "", f"class {index}") for index in range(classes))
        return ImportLabels(
            rows, f"the {classes} classes have no names: they are called class 0 and so on; give --labels"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error
    found = _lines(text) if path.suffix.lower() == ".txt" else _rows(text, path)
    if len(found) != classes:
        raise LabelsError(f"{path} has {len(found)} labels, and the network {classes} classes; give one for each")
    if empty := [label.class_id for label in found if not label.label]:
        raise LabelsError(f"{path} has no label for class {empty[0]}")
    if unprintable := [label.class_id for label in found if not label.label.isprintable()]:
        raise LabelsError(f"{path} has a control character in the label of class {unprintable[0]}; remove it")
    return ImportLabels(found)


def _lines(text: str) -> tuple[Label, ...]:
    return tuple(Label(index, "", line.strip()) for index, line in enumerate(text.rstrip().split("\n")))


def _rows(text: str, path: Path) -> tuple[Label, ...]:
    """From a CSV with the column label, and optionally class_id (0, 1, 2, ... in any order) and wnid."""
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = columns = [name.strip().lower() for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise LabelsError(f"{path} is not CSV: {error}") from error
    if "label" not in columns:
        raise LabelsError(
            f"{path} has the columns {', '.join(columns) or 'none'}; there must be label, and there may be class_id "
            "and wnid, with commas between them, in the first row (a .txt has a name per line and no such row)"
        )
    by_id: dict[str, Label] = {}
    for index, row in enumerate(rows):
        if None in row or None in row.values():
            raise LabelsError(
                f"{path} has not {len(columns)} values in row {index + 1}; put quotes around a label with a comma in "
                'it, as in "horse, mare"'
            )
        class_id = row.get("class_id", str(index)).strip()
        by_id[class_id] = Label(len(by_id), row.get("wnid", "").strip(), row["label"].strip())
    if by_id.keys() != {str(index) for index in range(len(rows))}:
        raise LabelsError(f"{path}: class_id must be each of 0 to {len(rows) - 1} once")
    return tuple(replace(by_id[str(index)], class_id=index) for index in range(len(rows)))
