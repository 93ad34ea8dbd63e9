"""Everything in one run: `make bench` for this project's own rows, `make bench-peers` beside other servers."""

import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from benchmarks import decoding, drift, overhead, start
from benchmarks.answers import CLOSE, SAME, expected_answers
from benchmarks.command import artifacts_option, model_option
from benchmarks.comparison import ComparedServer, ServerComparison, comparison_rows
from benchmarks.figures import missing
from benchmarks.limit import Limit, LimitMeter
from benchmarks.load import put_load
from benchmarks.machine import describe, pinned_versions
from benchmarks.report import BenchmarkReport, show, write
from benchmarks.requests import bench_photo
from benchmarks.servers import PEERS, Peer, ours
from export.gate_images import PHOTOS
from models.artifact.artifact import ArtifactError, load

_MEASUREMENTS = ("overhead", "decoding", "drift", "start")
_PARTS = ("race", *_MEASUREMENTS)


def chosen_peers(names: str) -> list[Peer]:
    """The peers of `all`, of `none`, or of names joined by commas. Raises BadParameter."""
    if names in ("all", "none"):
        return list(PEERS) if names == "all" else []
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise click.BadParameter(f"no peer {', '.join(unknown)}; there are {', '.join(known)}", param_hint="--peers")
    return [known[name] for name in names.split(",")]


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """Measures into a report. Where a part fails, a row says so, and the next part goes on."""

    model: str
    artifacts: Path
    folder: Path
    rounds: int
    seconds: float
    report: BenchmarkReport
    tell: Callable[[str], None]

    def attempt(self, name: str, step: Callable[[], None]) -> None:
        self.tell(f"measures {name}")
        try:
            step()
        except Exception as error:  # a part must not cost the figures of the others, whatever fails in it
            self.tell(f"{name} failed: {error!r}")
            self.report.rows.append(missing(name, str(error) or repr(error)))

    def compare(self, peers: Sequence[Peer]) -> None:
        """Compare this server, with default settings and as the peers run, with the peers."""
        artifact = load(self.artifacts, self.model)
        graph = artifact.folder / "model.onnx"
        options = ("--runtime", "onnxruntime", "--precision", "f32", "--max-batch", "8")  # as the peers have it
        equal = ours("topfive, ONNX Runtime f32", self.model, self.artifacts, *options)
        servers = [
            ComparedServer(ours("topfive", self.model, self.artifacts), CLOSE, Limit.OURS),
            ComparedServer(equal, CLOSE, Limit.OURS_F32),
            *(ComparedServer(peer.installed(graph), SAME) for peer in peers),
        ]
        meters = {limit: LimitMeter(limit, artifact) for limit in Limit}
        expected = expected_answers(self.model, self.artifacts)
        self.report.outcomes += ServerComparison(
            self.rounds,
            self.seconds,
            expected,
            self.folder,
            lambda limit, seconds: meters[limit].measure(seconds),
            put_load,
            self.tell,
        ).run(servers)
        self.report.rows += comparison_rows(self.report.outcomes)

    def measure(self, name: str) -> None:
        """Measure what `python -m benchmarks.NAME` measures."""
        photo, artifacts = (PHOTOS / "zebra.jpeg").read_bytes(), self.artifacts
        match name:
            case "overhead":
                found = overhead.measure(self.model, photo, artifacts, requests=200)
            case "decoding":
                found = decoding.measure()
            case "drift":
                found = drift.measure((PHOTOS,), drift.MODEL, artifacts, megapixels=8.0, each=1)
            case _:
                found = start.measure(self.model, photo, artifacts, starts=5, requests=200)
        self.report.add(found)


def _how(rounds: int, seconds: float) -> str:
    return (
        f"Rounds: {rounds}, {seconds:g} s for each figure; medians, the lowest and highest in brackets. "
        "In a round each server is started, answers four photos as the model itself does, is loaded and ended; odd "
        "rounds go the other way. Requests hold one photo of 500 x 375 pixels, "
        f"{len(bench_photo()) / 1000:.0f} kB; connections stay and are spread evenly over a server's processes. "
        f"The yardstick is {Limit.PEERS.value} in this machine's threads without a server, measured just before "
        "each server, and ratios between servers are ratios of requests per image of their yardsticks. CPU time "
        "is that of all processes of the server."
    )


def _interrupt(*_: object) -> None:
    """End the run at SIGTERM as at Ctrl-C, and every server with it."""
    raise KeyboardInterrupt


@click.command()
@model_option
@artifacts_option
@click.option("--peers", "peer_names", default="none", show_default=True, help="all, none, or names joined by commas")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds; each runs every server"
)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=4.0, show_default=True, help="Length of each run")
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Which parts; else all")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("build/benchmarks/report.md"),
    show_default=True,
    help="The report; all figures go into a folder of its name beside it",
)
def main(
    model: str,
    artifacts: Path,
    peer_names: str,
    rounds: int,
    seconds: float,
    only: Sequence[str],
    output: Path,
) -> None:
    """Measure this server, others and the limits of the machine, and write a report.

    The status is 1 where something could not be measured.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    peers, parts = chosen_peers(peer_names), only or _PARTS
    artifacts = artifacts.resolve()
    try:
        load(artifacts, model)
    except ArtifactError as error:
        raise click.UsageError(f"{error}; run: topfive export {model}") from error
    console = Console(stderr=True)
    report = BenchmarkReport(machine=describe(), how=_how(rounds, seconds))
    with tempfile.TemporaryDirectory(prefix="topfive-benchmark-") as folder:
        run = BenchmarkRun(model, artifacts, Path(folder), rounds, seconds, report, console.log)
        if "race" in parts:
            run.attempt("side by side", lambda: run.compare(peers))
        for name in _MEASUREMENTS:
            if name in parts:
                run.attempt(name, partial(run.measure, name))
    report.versions = [(peer.spec.name, f"{pinned_versions(peer)}; {peer.spec.settings}") for peer in peers]
    write(report, output)
    show(report, console)
    console.log(f"written: {output}")
    sys.exit(0 if report.complete else 1)


if __name__ == "__main__":
    main()
