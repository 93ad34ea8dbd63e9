"""The journal of a run: nothing is lost or mixed, whatever ends the run or lies at its place."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from service.offline.images import ImageFile, OfflineError
from service.offline.journal import Journal, delete_journal
from tests.offline.results import ODD_NAMES, bad, good

SETUP = {"model": "tiny", "version": 1, "top_k": 2}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal lies, in a folder that is not there yet."""
    return tmp_path / "out" / "j"


def images(*names: str) -> list[ImageFile]:
    """Files of these names."""
    return [ImageFile(name, Path(name)) for name in names]


def test_names(path: Path) -> None:
    """Any name that a file can have comes back in the next run, with its result."""
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
    """A process that stores two results and is killed at once."""
    script = (
        "import os, sys; from pathlib import Path; from service.offline.journal import Journal; "
        "from tests.offline.test_journal import SETUP, good; journal = Journal(Path(sys.argv[1]), SETUP); "
        "journal.append(good('a')); journal.append(good('b')); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False).returncode == -9


def test_killed(path: Path) -> None:
    """What was stored is there after kill -9, and the journal goes on; or it is deleted without a trace."""
    killed(path)
    with Journal(path, SETUP) as journal:
        assert list(journal.results(images("a", "b"))) == [good("a"), good("b")]
        journal.append(good("c"))
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a", "b", "c")) == []
    delete_journal(path)
    killed(path)
    delete_journal(path)
    assert list(path.parent.iterdir()) == []


def test_other_setup(path: Path) -> None:
    """A journal of another setup is refused, saying what differs and what to do, and keeps its results."""
    with Journal(path, SETUP) as journal:
        journal.append(good("a"))

    with pytest.raises(OfflineError, match=r"version was 1 and is now 2; .*--overwrite.*--out"):
        Journal(path, {**SETUP, "version": 2})
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a")) == []


def damage(path: Path, how: str) -> None:
    """Put a damaged journal, or something else, at its place."""
    if how == "database":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (a)")
        database.close()
        return
    with Journal(path, SETUP) as journal:
        for number in range(100):
            journal.append(good(str(number)))
    whole = path.read_bytes()
    path.write_bytes({"text": b"notes\nof mine\n", "half": whole[:8192], "zeros": b"\0" * len(whole)}[how])


@pytest.mark.parametrize("how", ["text", "half", "zeros", "database"])
def test_damaged(path: Path, how: str) -> None:
    """A file that is damaged, or no journal, is refused and stays, until the user asks to overwrite it."""
    path.parent.mkdir()
    damage(path, how)
    before = path.stat().st_size

    with pytest.raises(OfflineError, match=r"j is no journal, or damaged \(.*--overwrite.*--out"):
        Journal(path, SETUP)
    assert path.stat().st_size == before
    delete_journal(path)
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("0")) == images("0")


def test_empty_file(path: Path) -> None:
    """A run that was killed before it stored anything may leave an empty file, which is begun again."""
    path.parent.mkdir()
    path.touch()
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a")) == images("a")


def test_two_at_once(path: Path) -> None:
    """A second run over the same journal is refused while the first goes on, which loses nothing; so is deleting it."""
    with Journal(path, SETUP) as journal:
        journal.append(good("a"))
        with pytest.raises(OfflineError, match="another topfive is writing"):
            Journal(path, SETUP)
        with pytest.raises(OfflineError, match="another topfive is writing"):
            delete_journal(path)
        assert list(journal.results(images("a"))) == [good("a")]


def test_unwritable(tmp_path: Path) -> None:
    """A place where no file can be is named; a journal that is not there needs no deleting."""
    (tmp_path / "file").touch()
    with pytest.raises(OfflineError, match=r"file/j cannot be written"):
        Journal(tmp_path / "file" / "j", SETUP)
    with pytest.raises(OfflineError, match="cannot be written"):
        Journal(tmp_path, SETUP)
    delete_journal(tmp_path / "none" / "j")


def test_engine_failures_are_run_again(path: Path) -> None:
    """An image at which the engine failed counts as done now, and as missing in the next run."""
    with Journal(path, SETUP) as journal:
        journal.append(bad("a", "internal"))
        journal.append(bad("b", "bad_image"))
        assert journal.missing(images("a", "b")) == []
    with Journal(path, SETUP) as journal:
        assert journal.missing(images("a", "b")) == images("a")
        journal.append(good("a"))
    with Journal(path, SETUP) as journal:
        assert list(journal.results(images("a"))) == [good("a")]
