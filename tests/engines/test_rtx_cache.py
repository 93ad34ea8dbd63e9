"""TensorRT for RTX: how its contexts are configured, and what it compiled, kept on disk for the next start."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.artifact.engine_plan import Flavour
from service.engines.tensorrt import plan
from tests.fake_tensorrt import BROKEN, network
from tests.scripted_card import CARD, CLASSES, ScriptedCard, pixels

MakeCard = Callable[[], ScriptedCard]


@pytest.fixture
def rtx(tmp_path: Path) -> MakeCard:
    """Cards with TensorRT for RTX that share one cache folder, each as a new process has it."""
    return lambda: ScriptedCard(tmp_path, Flavour.TENSORRT_RTX)


def files(folder: Path) -> list[Path]:
    """All that lies in the cache."""
    return sorted(path for path in folder.joinpath("cache").rglob("*") if path.is_file())


def test_configuration(rtx: MakeCard) -> None:
    """Each context has RTX's own whole graphs and lazy kernels and shares the cache; nothing is captured besides."""
    here = rtx()
    engine = here.open(slots=2)
    assert here.trt.contexts == 2 * [
        {
            "cuda_graph_strategy": "whole",
            "dynamic_shapes_kernel_specialization_strategy": "lazy",
            "has_cache": True,
        }
    ]
    assert here.script.counts["cudaStreamBeginCapture"] == 0
    engine.close()
    here.trt.assert_clean()


def test_kept(rtx: MakeCard, tmp_path: Path) -> None:
    """What was compiled is on disk once the engine is warm, and the next process reads it back."""
    first = rtx()
    engine = first.open(max_batch=8)
    (file,) = files(tmp_path)
    assert file.name.endswith("-NVIDIA-GeForce-RTX-2080-Ti-580.82.07.cache")
    assert json.loads(file.read_bytes().partition(b"\n")[2]) == [1, 2, 4, 8]
    first.trt.compiled.add(99)
    engine.close()
    assert json.loads(file.read_bytes().partition(b"\n")[2]) == [1, 2, 4, 8, 99]

    second = rtx()
    second.open(max_batch=2)
    assert second.trt.compiled == {1, 2, 4, 8, 99}


def test_damaged(rtx: MakeCard, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file never reaches the library; it is said, and replaced."""
    rtx().open().close()
    (file,) = files(tmp_path)
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    here = rtx()
    with caplog.at_level(logging.WARNING):
        engine = here.open()
    assert here.script.counts["deserialize"] == 0
    assert f"{file} is damaged" in caplog.text
    assert file.read_bytes() == good
    np.testing.assert_array_equal(engine.run(pixels(3)), network(pixels(3), CLASSES))


def test_refused_by_the_library(rtx: MakeCard, tmp_path: Path) -> None:
    """A cache that RTX itself does not take costs only the time to compile."""
    rtx().open().close()
    here = rtx()
    here.script.fail("deserialize", BROKEN)
    engine = here.open()
    np.testing.assert_array_equal(engine.run(pixels(3)), network(pixels(3), CLASSES))
    engine.close()
    here.trt.assert_clean()


def test_folder_that_cannot_be_written(rtx: MakeCard, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine serves without its cache, and the log says why."""
    (tmp_path / "cache").write_text("a file, not a folder")
    here = rtx()
    with caplog.at_level(logging.WARNING):
        engine = here.open()
    assert "cannot be read (Not a directory)" in caplog.text
    assert "cannot be written" in caplog.text
    engine.close()
    here.trt.assert_clean()


def test_too_large(
    rtx: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache larger than NVIDIA advises is not kept, and the log says so."""
    monkeypatch.setattr(plan, "LARGEST_CACHE_BYTES", 3)
    with caplog.at_level(logging.WARNING):
        rtx().open().close()

    assert "is too large to be kept" in caplog.text
    assert files(tmp_path) == []


def test_one_file_for_each(rtx: MakeCard, tmp_path: Path) -> None:
    """Another plan, card or driver has another file."""
    rtx().open().close()
    ScriptedCard(tmp_path, Flavour.TENSORRT_RTX, profile=(1, 8, 16)).open().close()
    ScriptedCard(tmp_path, Flavour.TENSORRT_RTX, card=replace(CARD, name="another")).open().close()
    ScriptedCard(tmp_path, Flavour.TENSORRT_RTX, driver="590.1").open().close()

    assert len(files(tmp_path)) == 4
