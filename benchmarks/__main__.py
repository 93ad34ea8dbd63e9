"""Everything in one run: `make bench` for this project's own rows, `make bench-peers` beside other servers."""

import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from subprocess import SubprocessError

import click
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import CLOSE, SAME, expected
from benchmarks.curves import batches, served
from benchmarks.figures import Curve, Row, Verdict, missing, spread
from benchmarks.install import install
from benchmarks.limit import Limit, limits
from benchmarks.load import LoadError, drive
from benchmarks.machine import describe, pinned
from benchmarks.modules import MODULES, Measured, measured
from benchmarks.race import Course, Entry, Outcome, race
from benchmarks.report import Report, write
from benchmarks.rows import rows
from benchmarks.server import Place, ServerError
from benchmarks.subjects import ENVIRONMENTS, PEERS, Peer, ours
from models.artifact import ArtifactError, load

_CURVE_ROUNDS = 2


class Part(StrEnum):
    """What a run is made of, beside the modules."""

    RACE = "race"
    CURVES = "curves"


def chosen_peers(names: str) -> list[Peer]:
    """`all`, `none`, or names joined by commas. Raises BadParameter."""
    if names in ("all", "none"):
        return list(PEERS) if names == "all" else []
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise click.BadParameter(f"no peer {', '.join(unknown)}; there are {', '.join(known)}", param_hint="--peers")
    return [known[name] for name in names.split(",")]


def run_race(
    model: str, artifacts: Path, peers: Sequence[Peer], environments: Path, course: Course, tell: Callable[[str], None]
) -> list[Outcome]:
    """Two ways of ours and the peers that could be installed, in turns; those that could not have their reason."""
    failed = install(peers, environments, tell)
    f32 = ours("topfive, ONNX Runtime f32", model, artifacts, "--runtime", "onnxruntime", "--precision", "f32")
    entries = [Entry(ours("topfive", model, artifacts), CLOSE, Limit.OURS), Entry(f32, CLOSE, Limit.OURS_F32)]
    entries += [Entry(peer.of(environments), SAME) for peer in peers if peer.name not in failed]
    with limits(model, artifacts) as measure:
        outcomes = race(entries, course, measure, drive, tell)
    absent = [(peer, failed[peer.name]) for peer in peers if peer.name in failed]
    return outcomes + [
        Outcome(Entry(peer.of(environments), SAME), reason=f"not installed: {why}") for peer, why in absent
    ]


def run_curves(
    model: str, artifacts: Path, place: Place, seconds: float, tell: Callable[[str], None]
) -> tuple[list[Curve], list[Row]]:
    """All curves, and a row for what could not be measured."""
    curves: list[Curve] = []
    failures: list[Row] = []
    steps: dict[str, Callable[[], list[Curve]]] = {
        "engine alone over batch size": lambda: [batches(model, artifacts, seconds)],
        "requests over connections and image size": lambda: served(
            ours("topfive", model, artifacts), place, drive, _CURVE_ROUNDS, seconds, tell
        ),
    }
    for name, step in steps.items():
        tell(f"measures {name}")
        try:
            curves += step()
        except (OSError, SubprocessError, ServerError, LoadError) as error:
            failures.append(missing(f"no cliff: {name}", str(error)))
    return curves, failures


def show(console: Console, found: Sequence[Row]) -> None:
    """The rows in the terminal."""
    table = Table()
    for column in ("", "median (lowest to highest)", "target", "", "note"):
        table.add_column(column)
    colours = {Verdict.PASS: "green", Verdict.MISS: "yellow", Verdict.ERROR: "red", Verdict.SHOWN: "default"}
    for row in found:
        verdict = f"[{colours[row.verdict]}]{row.verdict.value}[/]"
        table.add_row(row.name, f"{spread(row.values, 2)} {row.unit}", str(row.target or ""), verdict, row.note)
    console.print(table)


def _interrupted(*_: object) -> None:
    """SIGTERM ends the run as Ctrl-C does: every server with it."""
    raise KeyboardInterrupt


def _how(course: Course) -> str:
    return (
        f"Medians of {course.rounds} rounds, the lowest and highest in brackets; {course.seconds:g} s for each figure. "
        "In a round each server is started, answers four photos as the model itself does, is loaded and ended; odd "
        "rounds go the other way. Requests hold one photo of 500 x 375 pixels, "
        f"{len(course.expected[0].photo) / 1000:.0f} kB; connections stay and are spread evenly over a server's "
        f"processes. The yardstick is {Limit.PEERS.value} in this machine's threads without a server, measured just "
        "before each server, and ratios between servers are ratios of requests per image of their yardsticks. CPU time "
        "is that of all processes of the server."
    )


_OUTPUT = Path("build/benchmarks/report.md")
_PARTS = (Part.RACE.value, Part.CURVES.value, *(module.name for module in MODULES))


@click.command()
@click.option("--model", default="googlenet", show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"), show_default=True)
@click.option("--peers", "peer_names", default="none", show_default=True, help="all, none, or names joined by commas")
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=ENVIRONMENTS,
    envvar="TOPFIVE_BENCH_ENVIRONMENTS",
    help="Where peers are installed",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=4.0, show_default=True, help="Of each measurement")
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Which parts; else all")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/benchmarks/report.md"), show_default=True
)
def main(
    model: str,
    artifacts: Path,
    peer_names: str,
    environments: Path,
    rounds: int,
    seconds: float,
    only: Sequence[str],
    output: Path,
) -> None:
    """Measure this server, others and the limits of the machine, and write a report. Status 1: not all was."""
    signal.signal(signal.SIGTERM, _interrupted)
    peers, parts = chosen_peers(peer_names), only or _PARTS
    artifacts, environments = artifacts.resolve(), environments.resolve()
    try:
        graph = load(artifacts, model).folder / "model.onnx"
    except ArtifactError as error:
        raise click.UsageError(f"{error}; run: topfive export {model}") from error
    machine, console = describe(), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="topfive-benchmark-") as folder:
        place = Place(graph, Path(folder))
        course = Course(rounds, seconds, place, expected(model, artifacts))
        outcomes: list[Outcome] = []
        curves: list[Curve] = []
        found: list[Row] = []
        if Part.RACE in parts:
            outcomes = run_race(model, artifacts, peers, environments, course, console.log)
            found += rows(outcomes)
        modules: list[Measured] = []
        for module in MODULES:
            if module.name in parts:
                console.log(f"runs benchmarks.{module.name}")
                modules.append(measured(module, model, artifacts))
                found += modules[-1].rows
        if Part.CURVES in parts:
            curves, failures = run_curves(model, artifacts, place, seconds / 2, console.log)
            found += [*(curve.row for curve in curves), *failures]
    versions = [(peer.subject.name, f"{pinned(peer, environments)}; {peer.subject.settings}") for peer in peers]
    write(Report(machine, found, outcomes, curves, modules, versions, _how(course)), output)
    show(console, found)
    console.log(f"written: {output}")
    failed = [one for one in found if one.verdict is Verdict.ERROR]
    sys.exit(1 if failed or any(one.reason for one in outcomes) else 0)


if __name__ == "__main__":
    main()
