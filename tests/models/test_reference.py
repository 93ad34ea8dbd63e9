"""What an artifact must answer: written at export, read back as it was, and refused where it is damaged."""

from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import load
from models.artifact.reference import REFERENCE, UnreadableReferenceError, read_reference, write_reference
from service.common.types import Precision, Runtime
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import compare
from service.engines.selection.select import EngineOptions


def test_kept_by_the_export(exported: Path) -> None:
    """An artifact holds images and eager PyTorch's answers, under the manifest's sha256; engines meet them."""
    artifact = load(exported, "tiny")
    assert REFERENCE in artifact.manifest.files
    reference = read_reference(artifact.folder)
    assert reference is not None
    size = artifact.manifest.input.crop
    assert reference.images.shape[1:] == (size, size, 3)
    assert len(reference.images) > 6
    np.testing.assert_allclose(reference.probabilities.sum(axis=1), 1, atol=1e-5)
    engine = build_engine(artifact, Runtime.ONNXRUNTIME, Precision.F32, EngineOptions())
    assert compare(engine, Precision.F32, reference.images, reference.probabilities).passed
    wrong = np.roll(reference.probabilities, 1, axis=1)
    assert not compare(engine, Precision.F32, reference.images, wrong).passed


def test_absent(tmp_path: Path) -> None:
    """An artifact of an older version has none."""
    assert read_reference(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x04N."])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    """What is no such file is refused by name; nothing in it is executed."""
    (tmp_path / REFERENCE).write_bytes(content)
    with pytest.raises(UnreadableReferenceError, match=REFERENCE):
        read_reference(tmp_path)


def test_other_contents(tmp_path: Path) -> None:
    """Arrays of another kind, or of different lengths, are refused."""
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    write_reference(tmp_path, images, np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(UnreadableReferenceError, match="does not hold"):
        read_reference(tmp_path)
    np.savez(tmp_path / REFERENCE, images=images)
    with pytest.raises(UnreadableReferenceError, match="probabilities"):
        read_reference(tmp_path)
