"""The measurement of start and memory: it reads the kernel's figures rightly, and runs a real server."""

import os
from pathlib import Path

import pytest

from benchmarks.start import Memory, cpu_seconds, measure, server


def test_memory_is_that_of_the_kernel(tmp_path: Path) -> None:
    """KiB of the kernel become MiB, each by its own name."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(
        "Name:\tx\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\nRssAnon:\t 1536 kB\nRssFile:\t 512 kB\n"
    )

    assert Memory.of(7, tmp_path) == Memory(resident=2.0, peak=4.0, anonymous=1.5)


def test_cpu_time_is_of_user_and_system(tmp_path: Path) -> None:
    """Fields are counted behind the name, which may have spaces and brackets in it."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a b) c) S 1 1 1 0 -1 4194560 10 0 0 0 150 50 0 0 20 0\n")

    assert cpu_seconds(7, tmp_path) == 200 / os.sysconf("SC_CLK_TCK")


def test_a_real_server_is_measured(artifacts: Path, photo: bytes) -> None:
    """It starts, answers, and ends; every figure is there, and later starts cost what was measured."""
    figures = measure("tiny", artifacts, photo, starts=1, requests=17)

    assert figures.start_cpu_s > 0
    assert figures.start_s > 0
    assert 0 < figures.after_requests.anonymous < figures.after_requests.resident <= figures.after_requests.peak
    assert figures.at_ready.peak <= figures.after_requests.peak


def test_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    """Without the model its own words are the error, and nothing is waited for."""
    with pytest.raises(RuntimeError, match="tiny is not exported yet"), server("tiny", tmp_path, tmp_path):
        pass
