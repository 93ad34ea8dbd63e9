"""Replacing a file in one step: what is there before, after, and when it fails; and the home of who has none."""

import pwd
import stat
from pathlib import Path

import pytest

from models.artifact.files import expand_home, write_atomically
from service.common.settings import Settings


def mode(path: Path) -> int:
    """Its permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_new(tmp_path: Path) -> None:
    """A new file is there whole, readable by all, and alone."""
    file = tmp_path / "a.json"
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert mode(file) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_old(tmp_path: Path) -> None:
    """One that is there keeps its permissions; who has the old one open reads that to its end."""
    file = tmp_path / "a.json"
    file.write_bytes(b"old")
    file.chmod(0o640)
    with file.open("rb") as reader:
        write_atomically(file, b"newer")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"newer"
    assert mode(file) == 0o640


def test_failure_leaves_the_old_one(tmp_path: Path) -> None:
    """Where it fails, what was there stays, and no draft is left."""
    folder = tmp_path / "a.json"
    folder.mkdir()
    (folder / "kept").touch()
    with pytest.raises(OSError, match=r"a\.json"):
        write_atomically(folder, b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.json", "kept"]


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's own; another path stays, and so does the name of a user who is not there."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert expand_home(Path("~/a/b")) == tmp_path / "a" / "b"
    assert expand_home(tmp_path) == tmp_path
    assert expand_home(Path("~no-such-user/a")) == Path("~no-such-user/a")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name and a home, as in a container, is at home in `/`: the settings have a cache folder."""

    def unknown(_number: int) -> object:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)

    assert expand_home(Path("~/.cache/topfive")) == Path("/.cache/topfive")
    assert Settings().cache_folder == Path("/.cache/topfive")
