"""The journal of a run keeps every result, whatever ends the run, and refuses files of other runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.offline.images import ImageFile, OfflineError
from service.offline.journal import Journal
from tests.offline.results import ODD_NAMES, bad, good

SETUP = {"model": "tiny", "version": 1, "top_k": 2}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a journal, in a folder that does not exist yet."""
    return tmp_path / "out" / "j"


def images(*names: str) -> list[ImageFile]:
    """Files of these names."""
    return [ImageFile(name, Path(name)) for name in names]


def test_names(path: Path) -> None:
    """The next run finds the result of every image, whatever characters its name has."""
    with Journal(path, SETUP) as journal:
        assert journal.missing(images(*ODD_NAMES)) == images(*ODD_NAMES)
        for name in ODD_NAMES:
            journal.append(good(name, 3, 4, truth=3))
        journal.append(bad("other"))
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a", *ODD_NAMES, "other", "b")) == images("a", "b")
        found = list(journal.results(images("other", *ODD_NAMES)))
    assert found == [bad("other"), *(good(name, 3, 4, truth=3) for name in ODD_NAMES)]


def killed(path: Path) -> None:
    """Run a process that stores two results and kills itself."""
    script = (
        "import os, sys; from pathlib import Path; from service.offline.journal import Journal; "
        "from tests.offline.test_journal import SETUP, good; journal = Journal(Path(sys.argv[1]), SETUP); "
        "journal.append(good('a')); journal.append(good('b')); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False).returncode == -9


def test_killed(path: Path) -> None:
    """After kill -9 the journal has the results that were stored; the next run appends to it or starts again."""
    killed(path)
    with Journal(path, SETUP) as journal:
        assert list(journal.results(images("a", "b"))) == [good("a"), good("b")]
        journal.append(good("c"))
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a", "b", "c")) == []
    killed(path)
    with Journal(path, SETUP, overwrite=True) as journal:
        assert journal.missing(images("a", "b")) == images("a", "b")
    assert list(path.parent.iterdir()) == [path]


def test_other_setup(path: Path) -> None:
    """A journal of another setup is refused, saying what differs and what to do, and keeps its results."""
    with Journal(path, SETUP) as journal:
        journal.append(good("a"))

    with pytest.raises(OfflineError, match=r"version was 1 and is now 2; .*--overwrite.*--out"):
        Journal(path, {**SETUP, "version": 2})
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a")) == []


@pytest.mark.parametrize("how", ["text", "half", "zeros"])
def test_damaged(path: Path, how: str) -> None:
    """A damaged journal, or another file, raises an error and stays, until the user asks to overwrite it."""
    with Journal(path, SETUP) as journal:
        for number in range(100):
            journal.append(good(str(number)))
    whole = path.read_bytes()
    path.write_bytes({"text": b"notes\nof mine\n", "half": whole[:8192], "zeros": b"\0" * len(whole)}[how])
    before = path.stat().st_size

    with pytest.raises(OfflineError, match=r"j: .*--overwrite.*--out"):
        Journal(path, SETUP)
    assert path.stat().st_size >= before
    with Journal(path, SETUP, overwrite=True) as journal:
        assert journal.missing(images("0")) == images("0")


def test_empty_file(path: Path) -> None:
    """An empty file, which a killed run may leave, is a journal without results."""
    path.parent.mkdir()
    path.touch()
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a")) == images("a")


def test_two_at_once(path: Path) -> None:
    """While a run writes a journal, a second run over it raises an error; no result is lost."""
    with Journal(path, SETUP) as journal:
        journal.append(good("a"))
        with pytest.raises(OfflineError, match="another topfive is writing"):
            Journal(path, SETUP)
        assert list(journal.results(images("a"))) == [good("a")]


def test_unwritable(tmp_path: Path) -> None:
    """A path where no file can be written raises an error with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(OfflineError, match=r"file/j cannot be written"):
        Journal(tmp_path / "file" / "j", SETUP)
    with pytest.raises(OfflineError, match="unable to open"):
        Journal(tmp_path, SETUP)


def test_engine_failures_are_run_again(path: Path) -> None:
    """An image whose engine failed counts as done in this run, and the next run runs it again."""
    with Journal(path, SETUP) as journal:
        journal.append(bad("a", "internal"))
        journal.append(bad("b", "bad_image"))
        assert journal.missing(images("a", "b")) == []
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a", "b")) == images("a")
        journal.append(good("a"))
    with Journal(path, SETUP) as journal:
        assert list(journal.results(images("a"))) == [good("a")]
