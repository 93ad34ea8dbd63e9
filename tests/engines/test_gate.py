"""The check on the card: made once per engine, card and versions, kept, and never taken for another's."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import IMPORTED, Artifact, load
from models.artifact.reference import Reference
from service.common.types import EngineInfo, Precision, Probabilities, Rows
from service.engines.base import EngineUnavailableError, as_batch
from service.engines.selection.parity import BOUNDS, CheckedEngine, ParityCheck, reference_of, thresholds
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
        batch = as_batch(rows)
        self.batches.append(len(batch))
        blank = np.full(self.classes, 1 / self.classes, dtype=np.float32)
        found = np.stack([self._rows.get(image.tobytes(), blank) for image in batch])
        moved = found * (1 - self.error)
        moved[:, -1] += self.error
        return np.asarray(moved, dtype=np.float32)

    def describe(self) -> EngineInfo:
        return self.info


@pytest.fixture(scope="module")
def tiny(exported: Path) -> Artifact:
    """The artifact of `tiny`."""
    return load(exported, "tiny")


@pytest.fixture
def reference(tiny: Artifact) -> Reference:
    """Its answers."""
    return reference_of(tiny)


@pytest.fixture
def gate(tiny: Artifact, tmp_path: Path) -> ParityCheck:
    """The check of a plan of `tiny` that takes 8 rows."""
    return ParityCheck.of(tiny, SUBJECT, 8, tmp_path)


def test_measured_once(gate: ParityCheck, reference: Reference) -> None:
    """The report of a check is what the next load reads, equal in every field; before it there is none."""
    assert gate.stored() is None
    engine = Faithful(reference)

    report = gate.run(engine, reference)

    assert report.passed
    assert (report.device, report.precision, report.images) == ("cuda:0", "fp16", len(reference.images))
    images = len(reference.images)
    assert len(engine.batches) == images + -(-images // 3) + -(-images // 8)
    assert gate.stored() == report
    assert len([path for path in (gate.cache or Path()).rglob("*") if path.is_file()]) == 1


def test_failure_says_what_to_do(gate: ParityCheck, reference: Reference) -> None:
    """The error names other options, and the file without which the engine is checked again."""
    report = gate.run(Faithful(reference, error=0.05), reference)
    [file] = ((gate.cache or Path()) / "parity").iterdir()
    assert f"use another --precision or --runtime; it is checked again once {file} is deleted" in gate.failure(report)
    file.unlink()
    assert gate.stored() is None


def test_failure_is_kept(gate: ParityCheck, reference: Reference) -> None:
    """An engine that differs fails with its figure, and is remembered as failed."""
    report = gate.run(Faithful(reference, error=0.05), reference)

    assert not report.passed
    assert report.max_abs_diff == pytest.approx(0.05, rel=0.1)
    kept = gate.stored()
    assert kept is not None
    assert not kept.passed


@pytest.mark.parametrize(
    "other",
    [
        replace(SUBJECT, engine_sha256="another"),
        replace(SUBJECT, reference_sha256="another"),
        replace(SUBJECT, runtime="tensorrt-rtx"),
        replace(SUBJECT, runtime_version="11.5"),
        replace(SUBJECT, precision=Precision.F32),
        replace(SUBJECT, card="NVIDIA GeForce RTX 2080"),
        replace(SUBJECT, driver="580.82.08"),
    ],
)
def test_holds_for_its_subject_only(gate: ParityCheck, reference: Reference, other: CheckedEngine) -> None:
    """Another plan, reference, runtime, version, precision, card or driver is checked anew."""
    gate.run(Faithful(reference), reference)

    assert replace(gate, subject=other).stored() is None
    assert gate.stored() is not None


def test_holds_for_its_thresholds_and_batches_only(tiny: Artifact, gate: ParityCheck, reference: Reference) -> None:
    """A report by other thresholds, or of fewer batch sizes than will run, is not enough; one of more is."""
    few = ParityCheck.of(tiny, SUBJECT, 2, gate.cache)
    assert few.batch_sizes == (1, 2)
    few.run(Faithful(reference, max_batch=2), reference)
    assert gate.stored() is None
    gate.run(Faithful(reference), reference)
    assert ParityCheck.of(tiny, SUBJECT, 1, gate.cache).stored() is not None
    assert replace(gate, thresholds=BOUNDS.thresholds[Precision.F32]).stored() is None


@pytest.mark.parametrize("spoil", [lambda text: "", lambda text: text[:-20], lambda text: "{}", lambda text: "\0\xff"])
def test_damaged_report(gate: ParityCheck, reference: Reference, spoil: Callable[[str], str]) -> None:
    """A report that cannot be read is none, and the next check writes it anew."""
    report = gate.run(Faithful(reference), reference)
    [file] = ((gate.cache or Path()) / "parity").iterdir()
    file.write_text(spoil(file.read_text()), encoding="latin-1")

    assert gate.stored() is None
    gate.run(Faithful(reference), reference)
    assert gate.stored() == report


def test_report_of_another_under_its_name(gate: ParityCheck, reference: Reference) -> None:
    """A file that was copied to the name of another subject does not speak for it."""
    gate.run(Faithful(reference), reference)
    [file] = ((gate.cache or Path()) / "parity").iterdir()
    other = replace(gate, subject=replace(SUBJECT, card="another"))
    other.run(Faithful(reference), reference)
    [another] = set(file.parent.iterdir()) - {file}
    another.write_bytes(file.read_bytes())

    assert gate.stored() is not None
    assert other.stored() is None


def test_cache_that_cannot_be_written(
    tiny: Artifact, reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The check counts all the same; the log says that it will be made again, and which option helps."""
    (tmp_path / "file").write_text("")
    gate = ParityCheck.of(tiny, SUBJECT, 8, tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert gate.run(Faithful(reference), reference).passed

    assert "checked at each load; name a folder with --cache" in caplog.text
    assert gate.stored() is None


def test_nothing_kept_without_a_cache(tiny: Artifact, reference: Reference) -> None:
    """Where there is no cache each check is made."""
    gate = ParityCheck.of(tiny, SUBJECT, 8, None)
    assert gate.run(Faithful(reference), reference).passed
    assert gate.stored() is None


def test_no_reference(tiny: Artifact) -> None:
    """An artifact of an older version cannot be checked; the message has the command that exports it again."""
    files = {name: digest for name, digest in tiny.manifest.files.items() if name != "reference.npz"}
    old = replace(tiny, manifest=tiny.manifest.model_copy(update={"files": files}))

    with pytest.raises(EngineUnavailableError, match=r"tiny has no reference\.npz; run: topfive export tiny"):
        reference_of(old)


def test_thresholds_of_an_import(tiny: Artifact) -> None:
    """A file whose own f32 was allowed more is allowed as much in fp16, and each bound is the looser of the two."""
    loose = BOUNDS.thresholds[Precision.F32].model_copy(update={"max_abs_diff": 0.05, "top5_agreement": 0.5})
    f32 = next(report for report in tiny.manifest.parity if report.precision == "f32")
    manifest = tiny.manifest.model_copy(update={"parity": (f32.model_copy(update={"thresholds": loose}),)})
    own = BOUNDS.thresholds[Precision.FP16]

    assert thresholds(manifest, Precision.FP16) == own
    imported = manifest.model_copy(update={"family": IMPORTED})
    assert thresholds(imported, Precision.FP16) == own.model_copy(update={"max_abs_diff": 0.05, "top5_agreement": 0.5})
    assert thresholds(imported.model_copy(update={"parity": ()}), Precision.FP16) == own
