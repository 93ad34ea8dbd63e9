"""Values made of files: they follow the files, and a file that cannot be read leaves the older value."""

from pathlib import Path

import pytest

from service.common.reloaded import Reloaded
from tests.fakes import ManualClock


def test_follows_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A change is seen at the first use a second later; nothing is read meanwhile, and nothing without a change."""
    path, clock, loads = tmp_path / "number", ManualClock(), []
    path.write_text("1")

    def load() -> int:
        loads.append(1)
        return int(path.read_text())

    number = Reloaded([path], load, clock.now)
    path.write_text("22")
    assert number.value == 1
    clock.jump(1)
    assert (number.value, number.value, len(loads)) == (22, 22, 2)
    for wrong in ("x", None):
        path.unlink() if wrong is None else path.write_text(wrong)
        clock.jump(1)
        assert number.value == 22
    path.write_text("333")
    clock.jump(1)
    assert number.value == 333
    assert "stays in force" in caplog.text
    clock.jump(1)
    assert (number.value, len(loads)) == (333, 5)


def test_first_load(tmp_path: Path) -> None:
    """The first load raises what is wrong."""
    with pytest.raises(FileNotFoundError):
        Reloaded([tmp_path / "none"], (tmp_path / "none").read_text)
