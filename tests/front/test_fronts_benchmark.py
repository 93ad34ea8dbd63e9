"""The benchmark of front processes measures what it says."""

from pathlib import Path

import pytest

from benchmarks.figures import medians
from benchmarks.fronts import Scaling, children, numbers, served
from export.gate_images import PHOTOS
from service.common.settings import Settings

pytestmark = pytest.mark.anyio


async def test_cpu_time_by_process(exported: Path) -> None:
    """Decoding is in the figure of the front, not in that of the engine process; without a front all is in one."""
    photo = (PHOTOS / "zebra.jpeg").read_bytes()
    async with served(0, "tiny", exported) as one, served(1, "tiny", exported) as fronted:
        assert (children(one.process.pid), len(children(fronted.process.pid))) == ([], 1)
        alone = await one.round(photo, 4, 60)
        behind = await fronted.round(photo, 4, 60)
    assert alone.fronts_ms == 0
    assert 0 < behind.engine_process_ms < alone.engine_process_ms
    assert behind.engine_process_ms < behind.fronts_ms
    assert min(alone.per_second, behind.per_second) > 0
    assert behind.limit_per_second == pytest.approx(1000 / behind.engine_process_ms)


def test_numbers_are_those_that_the_server_takes() -> None:
    """On a machine of any size nothing is measured that the settings refuse; fronts grow up to the CPUs."""
    assert [numbers(cpus) for cpus in (1, 2, 6)] == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 4, 6]]
    assert [Settings(gateways=one).gateways for one in numbers(192)] == [0, 1, 2, 4, 8, 16, 32]


def test_medians() -> None:
    """Each figure is the median of its own."""
    rounds = [Scaling(1, 30, 3, 10), Scaling(2, 10, 2, 30), Scaling(9, 20, 1, 20)]
    assert medians(rounds) == Scaling(2, 20, 2, 20)
