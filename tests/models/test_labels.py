"""Class labels: the list of ImageNet, and files that are not such a list."""

import re
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from models.labels import Label, imagenet_labels, read_labels, write_labels


def test_imagenet() -> None:
    """There are 1000 classes, numbered in order, each with a WordNet id of its own."""
    labels = imagenet_labels()

    assert [label.class_id for label in labels] == list(range(1000))
    assert len({label.wnid for label in labels}) == 1000
    assert all(re.fullmatch(r"n\d{8}", label.wnid) for label in labels)
    assert [label.wnid for label in labels] == sorted(label.wnid for label in labels)


def test_imagenet_of_torchvision() -> None:
    """The names are those that torchvision's weights carry, in the order of their outputs."""
    categories = get_model_weights("alexnet").DEFAULT.meta["categories"]

    assert [label.label for label in imagenet_labels()] == categories


def test_imagenet_beside_the_project(shared_data: Path) -> None:
    """The list in the package is the one that the project was given."""
    assert imagenet_labels() == read_labels(shared_data / "imagenet1k.csv")


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read again: commas, quotes, other alphabets, and no WordNet id."""
    labels = (Label(0, "", 'a "b", c'), Label(1, "n00000001", "ÿ 猫"), Label(2, "n00000002", "plain"))
    write_labels(tmp_path / "labels.csv", labels)

    assert read_labels(tmp_path / "labels.csv") == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column class_id, label, wnid"),
        ("class_id,label\n0,cat\n", "lacks the column wnid"),
        ("class_id,wnid,label\n1,n1,cat\n", "0, 1, 2"),
        ("class_id,wnid,label\n0,n1,cat\n0,n2,dog\n", "0, 1, 2"),
        ("class_id,wnid,label\none,n1,cat\n", "one"),
        ("wnid,label,class_id\nn1,cat\n", "has '' for 0"),
    ],
    ids=["empty", "no wnid", "begins at 1", "twice", "no number", "short row"],
)
def test_not_labels(text: str, message: str, tmp_path: Path) -> None:
    """A file that is not a list of labels is a ValueError, never labels of the wrong classes."""
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(path)
