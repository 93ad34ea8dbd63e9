"""Labelled images: class folders and tables, every form of label, and what is refused."""

import os
from pathlib import Path

import pytest

from models.labels import Label, imagenet_labels, named_labels
from service.offline.dataset import read_dataset
from service.offline.rows import BulkError
from tests.conftest import png


def make(folder: Path, *names: str) -> Path:
    """Images of these names below the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return folder


def classes(source: Path, labels: tuple[Label, ...] = imagenet_labels()) -> dict[str, int | None]:
    """What each image shows, by its name."""
    return {item.name: item.truth for item in read_dataset(source).items(labels, "net")}


@pytest.mark.parametrize("name", ["n02123159", "tiger cat", "tiger_cat", "Tiger_Cat", "282", "TIGER  cat"])
def test_folder_names(name: str, tmp_path: Path) -> None:
    """A class folder is named by wnid, by label in any case with spaces or underscores, or by class id."""
    make(tmp_path, f"{name}/deep/a.png")

    assert classes(tmp_path) == {f"{name}/deep/a.png": 282}


def test_mixed_folders(tmp_path: Path) -> None:
    """Forms may be mixed, several folders may mean one class, and files that are no images do not count."""
    make(tmp_path, "n02123159/a.png", "tiger cat/b.JPG", "0/c.png", "0/notes.md", "README.md", "empty/notes.txt")

    assert classes(tmp_path) == {"0/c.png": 0, "n02123159/a.png": 282, "tiger cat/b.JPG": 282}


def test_digits(tmp_path: Path) -> None:
    """Folders 0 to 9 are the labels of the digits; a label that is a number goes before a class id."""
    make(tmp_path, *(f"{digit}/a.png" for digit in range(10)))

    assert list(classes(tmp_path, named_labels("digits")).values()) == list(range(10))
    upside_down = tuple(Label(class_id, "", str(9 - class_id)) for class_id in range(10))
    assert list(classes(tmp_path, upside_down).values()) == list(range(9, -1, -1))


@pytest.mark.parametrize(
    ("head", "cells", "expected"),
    [
        ("path,label", "a.png,n02123159", 282),
        ("path,label", "a.png,tiger_cat", 282),
        ("path,label", "a.png,282", 282),
        ("file,wnid", "a.png,n02123159", 282),
        ("file,class_id", "a.png,282", 282),
        ("file,class_id,wnid,label", "a.png,281,n02123159,tabby", 282),
        ("file,class_id,wnid,label", "a.png,282,,tabby", 282),
        ("label,path", '"tiger cat",a.png', 282),
    ],
)
def test_tables(head: str, cells: str, expected: int, tmp_path: Path) -> None:
    """A table has path or file, and wnid, class_id or label: the first of those that is filled in counts."""
    make(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(f"{head}\n{cells}\n{cells}\n")

    assert classes(tmp_path / "list.csv") == {"a.png": expected}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("image,label\na.png,1\n", "columns 'image', 'label'; needed are path or file, and wnid or class_id or label"),
        ("path;label\na.png;1\n", "columns 'path;label'; .* with commas between them"),
        ("path\na.png\n", "needed are"),
        ("path,label\na.png,\n", "row 2 has no label"),
        ("path,label\n,1\n", "row 2 has no path"),
        ("path,label\na.png,1\na.png,2\n", "a.png has two labels, '1' and '2'"),
        ("path,label\n", "has no images; expected"),
    ],
)
def test_refused_tables(table: str, reason: str, tmp_path: Path) -> None:
    """A table that does not say what each image shows is refused with the reason."""
    (tmp_path / "list.csv").write_text(table)

    with pytest.raises(BulkError, match=reason):
        read_dataset(tmp_path / "list.csv")


def test_refused_folders(tmp_path: Path) -> None:
    """A folder without class folders is refused with the layout that is expected, as is an image beside them."""
    with pytest.raises(BulkError, match=r"DIR/n02123045/a\.jpg"):
        read_dataset(tmp_path)
    make(tmp_path, "n02123159/a.png", "b.png")
    with pytest.raises(BulkError, match=r"b\.png is in no class folder; .*DIR/n02123045/a\.jpg"):
        read_dataset(tmp_path)
    with pytest.raises(BulkError, match=r"neither a folder nor a \.csv file"):
        read_dataset(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiger catt", r"'tiger catt' \(did you mean 'tiger cat'\?\)"),
        ("n00000000", "'n00000000'"),
        ("1000", r"'1000' \(class ids are 0 to 999\)"),
    ],
)
def test_unknown_label(name: str, hint: str, tmp_path: Path) -> None:
    """A label that the model does not know is refused with the nearest."""
    make(tmp_path, "0/a.png", f"{name}/b.png")

    with pytest.raises(BulkError, match=f"net does not know: label {hint}"):
        classes(tmp_path)


def test_many_unknown_labels(tmp_path: Path) -> None:
    """Of many unknown labels some are named and the others counted."""
    make(tmp_path, *(f"zzzz{number}/a.png" for number in range(9)))

    with pytest.raises(BulkError, match="and 4 more; nothing was run"):
        classes(tmp_path)


def test_ambiguous_label(tmp_path: Path) -> None:
    """A label that two classes share is refused, naming their wnids."""
    make(tmp_path, "Crane/a.png")
    labels = (Label(0, "n02012849", "crane"), Label(1, "n03126707", "crane"), Label(2, "n03710637", "maillot"))

    with pytest.raises(BulkError, match="'Crane' means several classes; write n02012849 or n03126707"):
        classes(tmp_path, labels)


def test_wnid_of_a_model_without(tmp_path: Path) -> None:
    """A wnid means nothing to a model whose classes have none."""
    make(tmp_path, "n02123159/a.png")

    with pytest.raises(BulkError, match="its classes have no wnids"):
        classes(tmp_path, named_labels("digits"))


def test_fingerprint(tmp_path: Path) -> None:
    """The fingerprint follows names, labels and sizes, and neither the place of the folder nor the model."""
    first = make(tmp_path / "a", "0/a.png", os.fsdecode(b"1/caf\xe9.png"))
    second = make(tmp_path / "b", "0/a.png", os.fsdecode(b"1/caf\xe9.png"))
    same = read_dataset(first).sha256
    assert read_dataset(second).sha256 == same

    (second / "0" / "a.png").write_bytes(png() + b" ")
    assert read_dataset(second).sha256 != same
    (second / "0" / "a.png").write_bytes(png())
    assert read_dataset(second).sha256 == same
    (second / "0").rename(second / "2")
    assert read_dataset(second).sha256 != same


def test_missing_files(tmp_path: Path) -> None:
    """A file of a table that is not there is an image all the same: it will be one that cannot be read."""
    (tmp_path / "list.csv").write_text("path,label\nnone.png,1\n")

    assert classes(tmp_path / "list.csv") == {"none.png": 1}
