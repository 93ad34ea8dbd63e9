"""Files that are written in one step, home folders, and cache files."""

import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from models.artifact.files import CacheFile, expand_home, file_name, write_atomically
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


def test_failure_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it fails or is interrupted, what was there stays, and no draft is left."""
    folder = tmp_path / "a.json"
    folder.mkdir()
    (folder / "kept").touch()
    with pytest.raises(OSError, match=r"a\.json"):
        write_atomically(folder, b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.json", "kept"]

    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    (folder / "kept").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(folder / "kept", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.json", "kept"]
    assert (folder / "kept").read_bytes() == b"old"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's own; another path stays, and so does the name of a user who is not there."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert expand_home(Path("~/a/b")) == tmp_path / "a" / "b"
    assert expand_home(tmp_path) == tmp_path
    assert expand_home(Path("~no-such-user/a")) == Path("~no-such-user/a")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name and a home folder, as in a container, has `/`, so that the settings have a cache folder."""

    def unknown(_number: int) -> object:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)

    assert expand_home(Path("~/.cache/topfive")) == Path("/.cache/topfive")
    assert Settings().cache_folder == Path("/.cache/topfive")


@pytest.fixture
def cache(tmp_path: Path) -> CacheFile:
    """A cache file in a folder that is not there yet."""
    return CacheFile(tmp_path / "cache" / "a.cache", "it is computed again")


def test_cache_file(cache: CacheFile) -> None:
    """What was written is read, by another process too; before that there is nothing. No draft is left."""
    assert cache.read() is None
    cache.write(b"one\ntwo")
    assert CacheFile(cache.path, "").read() == b"one\ntwo"
    cache.write(b"")
    assert cache.read() == b""
    assert list(cache.path.parent.iterdir()) == [cache.path]


def test_same_content_is_not_written_again(cache: CacheFile) -> None:
    """The file stays what it was; another content replaces it."""
    cache.write(b"content")
    before = cache.path.stat().st_ino
    cache.write(b"content")
    assert cache.path.stat().st_ino == before
    cache.write(b"another")
    assert cache.read() == b"another"


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda content: content[:-1], lambda content: content + b"\0"])
def test_damaged_cache_file(
    cache: CacheFile, spoil: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is not as it was written is not read; the log names it, and the next writing mends it."""
    cache.write(b"content")
    cache.path.write_bytes(spoil(cache.path.read_bytes()))
    assert cache.read() is None
    assert caplog.messages == [f"{cache.path} is damaged; it is computed again"]
    cache.write(b"content")
    assert cache.read() == b"content"


def test_cache_file_that_cannot_be_used(cache: CacheFile, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the place of the folder is said, and costs nothing but time."""
    cache.path.parent.write_text("a file")
    assert cache.read() is None
    cache.write(b"content")
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        f"{cache.path} cannot be read",
        f"{cache.path} cannot be written",
    ]


def test_name_of_a_file() -> None:
    """Words are joined by hyphens, and what has no place in a name becomes one."""
    assert file_name("NVIDIA GeForce RTX 2080 Ti", "580.82/07") == "NVIDIA-GeForce-RTX-2080-Ti-580.82-07"
