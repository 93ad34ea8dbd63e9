"""The measurement of start and memory, of a real server."""

from pathlib import Path

import pytest

from benchmarks.server_under_test import ServerError
from benchmarks.start import measure_start


def test_a_real_server_is_measured(artifacts: Path, photo: bytes) -> None:
    """It starts, answers, and ends; every figure is there, and later starts cost what was measured."""
    figures = measure_start("tiny", artifacts, photo, starts=1, requests=17)

    assert figures.start_cpu_s > 0
    assert figures.start_s > 0
    assert figures.first_s > 0
    assert 20 < figures.ready_mib < 2000
    assert 20 < figures.resident_mib < 2000


def test_server_that_does_not_start_is_an_error(tmp_path: Path, photo: bytes) -> None:
    """Without the model its own words are the error, and nothing is waited for."""
    with pytest.raises(ServerError, match="tiny is not exported yet"):
        measure_start("tiny", tmp_path, photo, starts=1, requests=1)
