"""Some hundred mutated inputs of each kind, and all that long runs found."""

import random
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.fuzz import CORPUS, faults, read_form, read_photo
from tests.fuzz.targets import targets


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", ["image", "form", "artifact"])
def test_mutated(name: str, tmp_path: Path) -> None:
    """A mutated input gives an answer or an error of the table, within a second."""
    read, seeds = targets(tmp_path)[name]
    run = faults(read, seeds, random.Random(name), tmp_path / "current")

    assert [fault for fault in islice(run, 400) if fault] == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_corpus(file: Path) -> None:
    """A file that was costly, or failed once, gives an answer or an error of the table."""
    read_photo(file.read_bytes())
    read_form(file.read_bytes())


def test_faults_are_seen(tmp_path: Path) -> None:
    """An error that is not of the table is a fault, and its input is kept before it is read."""
    current, seen = tmp_path / "current", []

    def read(data: bytes) -> None:
        seen.append(current.read_bytes() == data)
        raise KeyError(data)

    found = list(islice(faults(read, [b"abc"], random.Random(1), current), 3))
    assert all(fault is not None and fault[1].startswith("KeyError") for fault in found)
    assert seen == [True] * 3
