"""The benchmark of several models: what it counts, and that it runs against a real server."""

from pathlib import Path

from click.testing import CliRunner

from benchmarks.models import main, measure_models
from tests.conftest import png
from tests.repository.test_repository import copy_as


def test_models_are_measured_together_and_one_by_one(artifacts: Path) -> None:
    """A server of three, every figure there: rates, ratios, and at least an engine's threads."""
    for name in ("b", "c"):
        copy_as(artifacts, name)
    figures = measure_models(["tiny", "b", "c"], png(), artifacts, rounds=2, each=6, connections=4)
    assert figures.models == 3
    assert min(figures.mixed_per_s, figures.alone_per_s, figures.ratio, figures.cpu_ratio) > 0
    assert figures.threads > 3


def test_nothing_exported_says_what_to_do(tmp_path: Path) -> None:
    """An empty folder is a usage error with the command that fills it."""
    result = CliRunner().invoke(main, ["--artifacts", str(tmp_path)])
    assert result.exit_code == 2
    assert "topfive export" in result.output
