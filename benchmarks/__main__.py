"""Everything in one run: `make bench` for this project's own rows, `make bench-peers` beside other servers."""

import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from subprocess import SubprocessError

import click
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import CLOSE, SAME, expected
from benchmarks.curves import batches, served, together
from benchmarks.figures import Curve, Row, Verdict, missing
from benchmarks.install import install
from benchmarks.limit import Limit, LimitError, limits
from benchmarks.load import LoadError, drive
from benchmarks.machine import describe, pinned
from benchmarks.modules import MODULES, Measured, Module, measured
from benchmarks.race import Course, Entry, Outcome, race
from benchmarks.report import Report, write
from benchmarks.rows import rows
from benchmarks.server import Place, ServerError
from benchmarks.subjects import ENVIRONMENTS, PEERS, Peer, ours
from models.artifact.artifact import ArtifactError, load

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


@dataclass(slots=True)
class Run:
    """What one run has measured so far. A part that fails is a row that says so, and the next part goes on."""

    model: str
    artifacts: Path
    course: Course
    tell: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    modules: list[Measured] = field(default_factory=list)

    def race(self, peers: Sequence[Peer], environments: Path) -> None:
        """Two ways of ours and the peers, in turns; peers that could not be installed have their reason."""
        failed = install(peers, environments, self.tell)
        name = "topfive, ONNX Runtime f32"
        options = ("--runtime", "onnxruntime", "--precision", "f32", "--max-batch", "8")  # as the others have it
        entries = [
            Entry(ours("topfive", self.model, self.artifacts), CLOSE, Limit.OURS),
            Entry(ours(name, self.model, self.artifacts, *options), CLOSE, Limit.OURS_F32),
            *(Entry(peer.of(environments), SAME) for peer in peers if peer.name not in failed),
        ]
        try:
            with limits(self.model, self.artifacts) as measure:
                self.outcomes += race(entries, self.course, measure, drive, self.tell)
        except LimitError as error:
            self.rows.append(missing("side by side", str(error)))
        for peer in peers:
            if peer.name in failed:
                entry = Entry(peer.of(environments), SAME)
                self.outcomes.append(Outcome(entry, reason=f"not installed: {failed[peer.name]}"))
        self.rows += rows(self.outcomes)

    def module(self, module: Module) -> None:
        """Another measurement of this project."""
        self.tell(f"runs benchmarks.{module.name}")
        self.modules.append(measured(module, self.model, self.artifacts))
        self.rows += self.modules[-1].rows
        self.curves += together(self.modules[-1].figures)

    def served_curves(self) -> None:
        """Over batch sizes of the engine alone, and over connections and image sizes of the server."""
        seconds = self.course.seconds / 2
        subject = ours("topfive", self.model, self.artifacts)
        steps: dict[str, Callable[[], list[Curve]]] = {
            "engine alone over batch size": lambda: [batches(self.model, self.artifacts, seconds)],
            "requests over connections and image size": lambda: served(
                subject, self.course.place, drive, _CURVE_ROUNDS, seconds, self.tell
            ),
        }
        for name, step in steps.items():
            self.tell(f"measures {name}")
            try:
                self.curves += step()
            except (OSError, SubprocessError, ServerError, LoadError) as error:
                self.rows.append(missing(f"no cliff: {name}", str(error)))


def show(console: Console, found: Sequence[Row]) -> None:
    """The rows in the terminal."""
    table = Table()
    for column in ("", "median (lowest to highest)", "target", "", "note"):
        table.add_column(column)
    colours = {Verdict.PASS: "green", Verdict.MISS: "yellow", Verdict.ERROR: "red", Verdict.SHOWN: "default"}
    for row in found:
        verdict = f"[{colours[row.verdict]}]{row.verdict.value}[/]"
        table.add_row(row.name, row.shown, str(row.target or ""), verdict, row.note)
    console.print(table)


def _interrupted(*_: object) -> None:
    """SIGTERM ends the run as Ctrl-C does: every server with it."""
    raise KeyboardInterrupt


def _how(course: Course) -> str:
    return (
        f"Rounds: {course.rounds}, {course.seconds:g} s for each figure; medians, the lowest and highest in brackets. "
        "In a round each server is started, answers four photos as the model itself does, is loaded and ended; odd "
        "rounds go the other way. Requests hold one photo of 500 x 375 pixels, "
        f"{len(course.expected[0].photo) / 1000:.0f} kB; connections stay and are spread evenly over a server's "
        f"processes. The yardstick is {Limit.PEERS.value} in this machine's threads without a server, measured just "
        "before each server, and ratios between servers are ratios of requests per image of their yardsticks. CPU time "
        "is that of all processes of the server."
    )


_PARTS = (Part.RACE.value, Part.CURVES.value, *(module.name for module in MODULES))


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model")
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path, exists=True),
    default=Path("artifacts"),
    envvar="TOPFIVE_ARTIFACTS",
    show_default=True,
    help="Folder of exported models",
)
@click.option("--peers", "peer_names", default="none", show_default=True, help="all, none, or names joined by commas")
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=ENVIRONMENTS,
    envvar="TOPFIVE_BENCH_ENVIRONMENTS",
    show_default=True,
    help="Where peers are installed",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="In each every server runs once"
)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=4.0, show_default=True, help="Of each measurement")
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Which parts; else all")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("build/benchmarks/report.md"),
    show_default=True,
    help="The report; pictures and figures go into a folder of its name beside it",
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
        course = Course(rounds, seconds, Place(graph, Path(folder)), expected(model, artifacts))
        run = Run(model, artifacts, course, console.log)
        if Part.RACE in parts:
            run.race(peers, environments)
        for module in MODULES:
            if module.name in parts:
                run.module(module)
        if Part.CURVES in parts:
            run.served_curves()
    found = [*run.rows, *(curve.row for curve in run.curves)]
    versions = [(peer.subject.name, f"{pinned(peer, environments)}; {peer.subject.settings}") for peer in peers]
    write(Report(machine, found, run.outcomes, run.curves, run.modules, versions, _how(course)), output)
    show(console, found)
    console.log(f"written: {output}")
    failed = [one for one in found if one.verdict is Verdict.ERROR]
    sys.exit(1 if failed or any(one.reason for one in run.outcomes) else 0)


if __name__ == "__main__":
    main()
