"""What the benchmarks make of figures: rows, and the report."""

import click

from benchmarks.__main__ import main, measured
from benchmarks.report import NOT_MEASURED, BenchmarkReport, Measurement, ReportRow, page


def test_part_that_fails() -> None:
    """A part that fails is named as not measured with the reason."""

    def fail() -> Measurement:
        raise OSError("no\n disk")

    (row,) = measured("decoding", fail, lambda _: None).rows
    assert (row.name, row.verdict, row.note) == ("decoding", NOT_MEASURED, "no disk")


def test_every_option_is_explained() -> None:
    """`python -m benchmarks --help` explains each option."""
    options = [one for one in main.params if isinstance(one, click.Option)]
    assert options
    assert [one.name for one in options if not one.help] == []


def test_report() -> None:
    """The page has the machine, each row with its verdict, and each table."""
    rows = [
        ReportRow("ratio", [2.0, 1.0, 4.0], at_least=2.0, note="of 3"),
        ReportRow("cost", [0.5], "ms", at_most=0.4),
        ReportRow("a|b", note="not installed"),
    ]
    report = BenchmarkReport(
        [("processor", "a CPU")],
        "Three rounds.",
        [Measurement("Side by side", ("", "ms"), [["one", "1.5"]], rows, ["a note"])],
    )
    assert page(report) == (
        "# Measured\n\n- processor: a CPU\n\nThree rounds.\n\n## Targets\n\n"
        "|  | median (lowest to highest) | target |  | note |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ratio | 2.00 (1.00 to 4.00) | ≥ 2 | pass | of 3 |\n"
        "| cost | 0.50 ms | ≤ 0.4 | miss |  |\n"
        "| a\\|b | - |  | not measured | not installed |\n"
        "\n## Side by side\n\n|  | ms |\n| --- | ---: |\n| one | 1.5 |\n\n- a note\n"
    )
    assert not report.complete
