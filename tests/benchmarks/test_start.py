"""The measurement of start and memory, of a real server."""

import os
from pathlib import Path

import psutil
import pytest

from benchmarks.server_under_test import ServerError
from benchmarks.start import measure_start, memory_of


def test_memory_is_that_of_the_kernel() -> None:
    """The memory of a process is what the kernel counts, in MiB."""
    used, known = memory_of(os.getpid()), psutil.Process().memory_info()

    assert used.resident == pytest.approx(known.rss / (1 << 20), rel=0.05)
    assert used.anonymous == pytest.approx((known.rss - known.shared) / (1 << 20), rel=0.05)
    assert used.peak >= used.resident > used.anonymous


def test_a_real_server_is_measured(artifacts: Path, photo: bytes) -> None:
    """It starts, answers, and ends; every figure is there, and later starts cost what was measured."""
    figures = measure_start("tiny", artifacts, photo, starts=1, requests=17)

    assert figures.start_cpu_s > 0
    assert figures.start_s > 0
    assert 0 < figures.after_requests.anonymous < figures.after_requests.resident <= figures.after_requests.peak
    assert figures.at_ready.peak <= figures.after_requests.peak


def test_server_that_does_not_start_is_an_error(tmp_path: Path, photo: bytes) -> None:
    """Without the model its own words are the error, and nothing is waited for."""
    with pytest.raises(ServerError, match="tiny is not exported yet"):
        measure_start("tiny", tmp_path, photo, starts=1, requests=1)
