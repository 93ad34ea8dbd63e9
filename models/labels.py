"""Class labels: a row per output of the network, in CSV files."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its index in the output, its WordNet id (empty if it has none) and its English name."""

    class_id: int
    wnid: str
    label: str


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read a CSV with the columns class_id, wnid, label.

    Raises ValueError if it is no such CSV, a column is missing, or the class ids are not 0, 1, 2, ... in order.
    """
    try:
        return _read(path)
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def _read(path: Path) -> tuple[Label, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, restval="")
        missing = {"class_id", "wnid", "label"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the column {', '.join(sorted(missing))}")
        written = [(row["class_id"], row["wnid"], row["label"]) for row in rows]
    for number, (class_id, _, _) in enumerate(written):
        if class_id != str(number):
            raise ValueError(
                f"{path}: class_id must count 0, 1, 2, ... in order, and has {class_id[:20]!r} for {number}"
            )
    return tuple(Label(number, wnid, label) for number, (_, wnid, label) in enumerate(written))


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write a CSV that `read_labels` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class_id", "wnid", "label"])
        rows.writerows([label.class_id, label.wnid, label.label] for label in labels)


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """The 1000 classes of ImageNet-1k in the order of the ILSVRC 2012 competition."""
    return named_labels("imagenet1k")


@cache
def named_labels(name: str) -> tuple[Label, ...]:
    """The class labels that come with topfive under that name: `imagenet1k` or `digits`."""
    return read_labels(_DATA / f"{name}.csv")
