"""The check on the card: made once per engine, card and versions, kept, and never taken for another's."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact.artifact import Artifact
from models.artifact.files import CacheFile
from models.artifact.reference import Reference
from service.common.types import EngineInfo, Precision, Probabilities, Rows
from service.engines.selection.parity import CheckedEngine, ParityCheck, coarser, reference_of
from tests.fakes import FakeEngine

CARD = "NVIDIA GeForce RTX 2080 Ti"
SUBJECT = CheckedEngine("plan", "reference", "tensorrt", "11.4", Precision.FP16, CARD, "580.82.07")


class Faithful(FakeEngine):
    """Answers the images of a reference as it does, all probabilities moved by `error` towards the last class."""

    def __init__(self, reference: Reference, error: float = 0.0, max_batch: int = 8) -> None:
        super().__init__(reference.probabilities.shape[1], max_batch=max_batch)
        self.info = EngineInfo("tensorrt", "11.4", "cuda:0", "fp16")
        self.error = error
        self._rows = {
            image.tobytes(): row for image, row in zip(reference.images, reference.probabilities, strict=True)
        }

    def run(self, rows: Rows) -> Probabilities:
        if self.script:
            return super().run(rows)
        batch = np.asarray(rows)
        self.batches.append(len(batch))
        blank = np.full(self.classes, 1 / self.classes, dtype=np.float32)
        found = np.stack([self._rows.get(image.tobytes(), blank) for image in batch])
        moved = found * (1 - self.error)
        moved[:, -1] += self.error
        return np.asarray(moved, dtype=np.float32)

    def describe(self) -> EngineInfo:
        return self.info


@pytest.fixture
def reference(tiny: Artifact) -> Reference:
    """Its answers."""
    return reference_of(tiny)


@pytest.fixture
def check(tiny: Artifact, tmp_path: Path) -> ParityCheck:
    """The check of a plan of `tiny` that takes 8 rows."""
    return ParityCheck.of(tiny, SUBJECT, 8, tmp_path)


def test_measured_once(check: ParityCheck, reference: Reference) -> None:
    """The report of a check is what the next load reads, equal in every field; before it there is none."""
    assert check.stored() is None
    engine = Faithful(reference)

    report = check.run(engine, reference)

    assert report.passed
    assert (report.device, report.precision, report.images) == ("cuda:0", "fp16", len(reference.images))
    images = len(reference.images)
    assert len(engine.batches) == images + -(-images // 3) + -(-images // 8)
    assert check.stored() == report
    assert len([path for path in (check.cache or Path()).rglob("*") if path.is_file()]) == 1


def test_failure(check: ParityCheck, reference: Reference) -> None:
    """An engine that differs is remembered as failed; the error has its figure, what to do and the file to delete."""
    report = check.run(Faithful(reference, error=0.05), reference)

    assert not report.passed
    assert report.max_abs_diff == pytest.approx(0.05, rel=0.1)
    assert check.stored() == report
    [file] = ((check.cache or Path()) / "parity").iterdir()
    assert f"use another --precision or --runtime; it is checked again once {file} is deleted" in check.failure(report)
    file.unlink()
    assert check.stored() is None


@pytest.mark.parametrize(
    "change",
    [
        {"engine_sha256": "another"},
        {"reference_sha256": "another"},
        {"runtime": "tensorrt-rtx"},
        {"runtime_version": "11.5"},
        {"precision": Precision.F32},
        {"card": "NVIDIA GeForce RTX 2080"},
        {"driver": "580.82.08"},
    ],
)
def test_holds_for_its_subject_only(check: ParityCheck, reference: Reference, change: dict[str, Any]) -> None:
    """Another plan, reference, runtime, version, precision, card or driver is checked anew."""
    check.run(Faithful(reference), reference)

    assert replace(check, subject=replace(SUBJECT, **change)).stored() is None
    assert check.stored() is not None


def test_holds_for_its_bounds_and_batches_only(tiny: Artifact, check: ParityCheck, reference: Reference) -> None:
    """A report by other bounds, or of fewer batch sizes than will run, is not enough; one of more is."""
    few = ParityCheck.of(tiny, SUBJECT, 2, check.cache)
    assert few.batch_sizes == (1, 2)
    few.run(Faithful(reference, max_batch=2), reference)
    assert check.stored() is None
    check.run(Faithful(reference), reference)
    assert ParityCheck.of(tiny, SUBJECT, 1, check.cache).stored() is not None
    rounded = replace(tiny, manifest=tiny.manifest.model_copy(update={"rounding": "bf16"}))
    assert replace(check, artifact=rounded).stored() is None


def test_report_of_another_version(check: ParityCheck, reference: Reference) -> None:
    """A report that this version does not read is none, and the next check writes it anew."""
    report = check.run(Faithful(reference), reference)
    [file] = ((check.cache or Path()) / "parity").iterdir()
    CacheFile(file, "").write(b"{}")

    assert check.stored() is None
    check.run(Faithful(reference), reference)
    assert check.stored() == report


@pytest.mark.parametrize("cache", [None, "file"])
def test_without_a_cache(
    tiny: Artifact, reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: str | None
) -> None:
    """The check counts all the same. Where it cannot be kept the log says so, and which option helps."""
    (tmp_path / "file").write_text("")
    check = ParityCheck.of(tiny, SUBJECT, 8, tmp_path / cache if cache else None)
    with caplog.at_level(logging.WARNING):
        assert check.run(Faithful(reference), reference).passed

    assert ("checked at each load; name a folder with --cache" in caplog.text) is (cache is not None)
    assert check.stored() is None


def test_bounds_of_an_import() -> None:
    """A file that rounds its own values is compared by the bounds of the coarser of its rounding and the engine's."""
    assert coarser(Precision.F32, "fp16") is Precision.FP16
    assert coarser(Precision.FP16, "bf16") is Precision.BF16
    assert coarser(Precision.INT8, "bf16") is Precision.INT8
    assert coarser(Precision.FP16, "f32") is Precision.FP16
