"""The benchmark of several models: what it counts, and that it runs against a real server."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from benchmarks.models import main, measure_models, thread_states
from tests.conftest import png
from tests.repository.test_repository import copy_as

_FOUR = """
import sys, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


def test_threads_are_counted_with_their_states() -> None:
    """Of a process with three threads that wait beside one that reads all four sleep; the one that counts runs."""
    with subprocess.Popen([sys.executable, "-c", _FOUR], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        while len(found := thread_states(other.pid)) < 4 or "R" in found:
            assert other.poll() is None
        other.communicate()

    assert found == ["S"] * 4
    assert "R" in thread_states(os.getpid())


def test_models_are_measured_together_and_one_by_one(artifacts: Path) -> None:
    """A server of three, every figure there: rates, ratios, and at least an engine's threads."""
    for name in ("b", "c"):
        copy_as(artifacts, name)
    figures = measure_models(["tiny", "b", "c"], png(), artifacts, rounds=2, each=6, connections=4)
    assert figures.models == 3
    assert min(figures.mixed_per_s, figures.alone_per_s, figures.ratio, figures.cpu_ratio) > 0
    assert figures.threads > figures.runnable >= figures.usual >= 0


def test_nothing_exported_says_what_to_do(tmp_path: Path) -> None:
    """An empty folder is a usage error with the command that fills it."""
    result = CliRunner().invoke(main, ["--artifacts", str(tmp_path)])
    assert result.exit_code == 2
    assert "topfive export" in result.output
