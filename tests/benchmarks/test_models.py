"""The benchmark of several models: what it counts, and that it runs against a real server."""

from pathlib import Path

from click.testing import CliRunner

from benchmarks.models import main, measure
from tests.conftest import png
from tests.fleet import copy_model


def test_models_are_measured_together_and_one_by_one(artifacts: Path) -> None:
    """A server of three, every figure there: rates, ratios, and at least an engine's threads."""
    for name in ("b", "c"):
        copy_model(artifacts, name)
    found = measure(["tiny", "b", "c"], [1, 3, 5], png(), artifacts, rounds=2, each=6, connections=4)
    assert [one.models for one in found.figures] == [1, 3]
    figures = found.figures[-1]
    assert min(figures.mixed_per_s, figures.alone_per_s, figures.ratio, figures.cpu_ratio) > 0
    assert figures.threads > 3
    assert [(row.name, row.values) for row in found.rows] == [
        ("3 models mixed / one after the other", (figures.ratio,))
    ]
    assert [place for place, _ in found.curves[0].points] == [1, 3]


def test_nothing_exported_says_what_to_do(tmp_path: Path) -> None:
    """An empty folder is a usage error with the command that fills it."""
    result = CliRunner().invoke(main, ["--artifacts", str(tmp_path)])
    assert result.exit_code == 2
    assert "topfive export" in result.output
