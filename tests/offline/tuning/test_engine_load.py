"""The load under which an engine is measured: its figures, its limits and its errors."""

from dataclasses import replace

import pytest

from models.catalog import CATALOG
from service.common.errors import BadImage
from service.common.sample_photo import made_photo
from service.offline.tuning.engine_load import EngineLoad, measure
from tests.fakes import FakeEngine

LOAD = EngineLoad(made_photo(), CATALOG["tiny"].input, decoding_threads=1, clients=4)


def test_counts_what_the_engine_ran() -> None:
    """Batches stay within their bound, every figure is positive, and all images went through preprocessing."""
    engine = FakeEngine(slots=2)
    speed = measure(engine, LOAD, max_batch=3, seconds=0.2)

    assert len(engine.batches) >= 2
    assert max(engine.batches) <= 3
    assert min(speed.images_per_s, speed.run_ms, speed.cpu_ms) > 0


def test_no_more_images_than_clients() -> None:
    """A batch never has more images than there are clients."""
    engine = FakeEngine()
    measure(engine, replace(LOAD, decoding_threads=4, clients=2), max_batch=64, seconds=0.2)

    assert max(engine.batches) <= 2


def test_raises_what_the_engine_raises() -> None:
    """An engine that fails ends the measurement at once, with its own error and no thread left waiting."""
    engine = FakeEngine(slots=2)
    engine.script = [MemoryError("no room")]

    with pytest.raises(MemoryError, match="no room"):
        measure(engine, LOAD, max_batch=1, seconds=30)


def test_raises_what_decoding_raises() -> None:
    """Bytes that are no photo raise the error of the decoder."""
    with pytest.raises(BadImage):
        measure(FakeEngine(), replace(LOAD, photo=b"no photo"), max_batch=1, seconds=30)
