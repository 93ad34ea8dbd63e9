"""The measurement of start and memory: it reads the kernel's figures rightly, and runs a real server."""

from pathlib import Path

import pytest

from benchmarks.server_under_test import ServerError
from benchmarks.start import ProcessMemory, measure_start


def test_memory_is_that_of_the_kernel(tmp_path: Path) -> None:
    """KiB of the kernel become MiB, each by its own name."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(
        "Name:\tx\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\nRssAnon:\t 1536 kB\nRssFile:\t 512 kB\n"
    )

    assert ProcessMemory.of(7, tmp_path) == ProcessMemory(resident=2.0, peak=4.0, anonymous=1.5)


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
