"""Plans in an artifact: named for what they are, whole or not there, and never other bytes than their record's."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from models.artifact.engine_plan import (
    ENGINES,
    BatchProfile,
    ComputeCapability,
    Flavour,
    PlanError,
    PlanRecord,
    read_plans,
    write_plan,
)

CONTENT = b"a plan"


def record(**changes: object) -> PlanRecord:
    """The record of `CONTENT`."""
    made = PlanRecord(
        flavour=Flavour.TENSORRT_RTX,
        version="1.7.1.116",
        targets=("sm86", "sm89"),
        precision="fp16",
        profile=BatchProfile(smallest=1, best=8, largest=32),
        card=None,
        graph_sha256="g",
        source_sha256="s",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        build_s=0.5,
    )
    return made.model_copy(update=changes)


def test_written_and_read(tmp_path: Path) -> None:
    """Both files carry flavour, version, targets and precision in their names, and say the same when read."""
    written = write_plan(tmp_path, CONTENT, record())
    assert written.path == tmp_path / ENGINES / "tensorrt-rtx-1.7.1.116-sm86+sm89-fp16.plan"
    plans, damage = read_plans(tmp_path)
    assert (plans, damage) == ([written], [])
    assert plans[0].content() == CONTENT
    assert sorted(path.suffix for path in (tmp_path / ENGINES).iterdir()) == [".json", ".plan"]


def test_none(tmp_path: Path) -> None:
    """An artifact without engines has no plans, and one without its record is none."""
    assert read_plans(tmp_path) == ([], [])
    write_plan(tmp_path, CONTENT, record()).path.with_suffix(".json").unlink()
    assert read_plans(tmp_path) == ([], [])


def test_damage(tmp_path: Path) -> None:
    """Another plan than that of the record, or none, is refused; so is a record that cannot be read, by its name."""
    plan = write_plan(tmp_path, CONTENT, record())
    plan.path.write_bytes(b"another")
    with pytest.raises(PlanError, match="differs"):
        plan.content()
    plan.path.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        plan.content()
    plan.path.with_suffix(".json").write_text("{}")
    plans, damage = read_plans(tmp_path)
    assert plans == []
    assert len(damage) == 1
    assert plan.path.stem in damage[0]


def test_two_that_write_the_same_name_at_once(tmp_path: Path) -> None:
    """Plan and record are of one writer, however two that build other batches come together."""
    contents = (b"first" * 1000, b"second" * 1000)
    for _ in range(100):
        start = Barrier(2)

        def write(content: bytes, start: Barrier = start) -> None:
            start.wait()
            write_plan(tmp_path, content, record(sha256=hashlib.sha256(content).hexdigest()))

        with ThreadPoolExecutor(2) as writers:
            list(writers.map(write, contents))
        (plan,), _ = read_plans(tmp_path)
        assert plan.content() in contents


@pytest.mark.parametrize(
    ("text", "target"),
    [("sm75", ComputeCapability(7, 5)), ("sm89", ComputeCapability(8, 9)), ("sm120", ComputeCapability(12, 0))],
)
def test_targets(text: str, target: ComputeCapability) -> None:
    """A compute capability is written as compilers write it."""
    assert ComputeCapability.parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize("text", ["", "75", "sm7", "sm_75", "SM75", "sm7.5", "this"])
def test_no_targets(text: str) -> None:
    """Anything else is refused with the right form."""
    with pytest.raises(ValueError, match="sm75"):
        ComputeCapability.parse(text)
