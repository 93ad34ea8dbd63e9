"""The class names of an imported network: from a CSV or a list of lines, or where none is given what can be assumed."""

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from models.labels import Label, imagenet_labels

_COLUMNS = ("class_id", "wnid", "label")
_LONGEST_ID = 9  # digits; int() refuses thousands of them


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
        raise LabelsError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error
    found = _lines(text) if path.suffix.lower() == ".txt" else _rows(text, path)
    if len(found) != classes:
        raise LabelsError(f"{path} has {len(found)} labels, and the network {classes} classes; give one for each")
    if empty := [label.class_id for label in found if not label.label]:
        raise LabelsError(f"{path} has no label for class {empty[0]}")
    if unprintable := [label.class_id for label in found if not label.label.isprintable()]:
        raise LabelsError(f"{path} has a control character in the label of class {unprintable[0]}; remove it")
    return Labels(found)


def _lines(text: str) -> tuple[Label, ...]:
    return tuple(Label(index, "", line.strip()) for index, line in enumerate(text.rstrip().split("\n")))


def _rows(text: str, path: Path) -> tuple[Label, ...]:
    """From a CSV with the column label, and where they are there class_id (0, 1, 2, ... in any order) and wnid."""
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        places = _places(header, path)
        rows = [_label(line, places, index, path) for index, line in enumerate(line for line in lines if line)]
    except csv.Error as error:
        raise LabelsError(f"{path} is not CSV: {error} (line {lines.line_num})") from error
    rows.sort(key=lambda label: label.class_id)
    if [label.class_id for label in rows] != list(range(len(rows))):
        raise LabelsError(f"{path}: class_id must be each of 0 to {len(rows) - 1} once")
    return tuple(rows)


def _places(header: list[str], path: Path) -> dict[str, int]:
    """Where each column is. Raises LabelsError where one is missing, unknown or there twice."""
    names = [name.strip().lower() for name in header]
    places = {name: place for place, name in enumerate(names)}
    if "label" in places and len(places) == len(names) and not places.keys() - set(_COLUMNS):
        return places
    raise LabelsError(
        f"{path} has the columns {', '.join(header) or 'none'}; there must be label, and there may be class_id and "
        "wnid, each once and with commas between them, in the first row (a .txt has a name per line and no such row)"
    )


def _label(line: list[str], places: dict[str, int], index: int, path: Path) -> Label:
    if len(line) > len(places):
        raise LabelsError(
            f"{path} has {len(line)} values in row {index + 1} and {len(places)} columns; "
            'put quotes around a label with a comma in it, as in "horse, mare"'
        )
    values = {name: line[place].strip() if place < len(line) else "" for name, place in places.items()}
    written = values.get("class_id", str(index))
    if not (written.isascii() and written.isdecimal() and len(written) <= _LONGEST_ID):
        raise LabelsError(f"{path} has the class_id {written[:20]!r} in row {index + 1}; it counts 0, 1, 2, ...")
    return Label(int(written), values.get("wnid", ""), values["label"])
