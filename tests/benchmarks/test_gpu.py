"""The benchmark of a card: which engines it measures, and what it says of the others."""

from pathlib import Path

from benchmarks.gpu import SIZES, measure_card
from models.artifact.artifact import Artifact, load
from service.common.gpus import Card
from service.common.types import Runtime
from service.engines.base import Engine, EngineUnavailableError
from tests.fakes import FakeEngine
from tests.scripted_card import CARD


def test_measured(exported: Path) -> None:
    """Each engine is measured at each size that it takes, and closed; one that does not run says why."""
    fake = FakeEngine(max_batch=4)

    def opened(_artifact: Artifact, runtime: Runtime, _card: Card) -> Engine:
        if runtime is Runtime.TENSORRT:
            return fake
        raise EngineUnavailableError(f"{runtime}\n cannot run")

    found = measure_card(load(exported, "tiny"), CARD, 0.001, opened)
    (line,) = found.table
    assert len(line) == len(found.heads) == 2 + len(SIZES)
    assert [rate == "-" for rate in line[2:]] == [size > 4 for size in SIZES]
    assert fake.closed
    assert {row.name: row.note for row in found.rows} == {
        f"tiny: {runtime}": f"{runtime} cannot run"
        for runtime in (Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME_CUDA, Runtime.TORCH)
    }


def test_without_a_card(exported: Path) -> None:
    """Where nothing runs there is no table, and each engine has its reason."""
    found = measure_card(load(exported, "tiny"), CARD, 0.001)
    assert found.table == []
    assert all(row.note for row in found.rows)
