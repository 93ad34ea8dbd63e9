"""Everything in one run: `make bench` for this project's own rows, `make bench-peers` beside other servers."""

import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import decoding, latency, overhead
from benchmarks.answers import expected_answers
from benchmarks.comparison import ServerComparison, comparison_rows, comparison_table
from benchmarks.machine import describe, pinned_versions
from benchmarks.report import BenchmarkReport, Measurement, ReportRow, page, targets
from benchmarks.requests import bench_photo
from benchmarks.servers import PEERS, Peer, ours
from models.artifact.artifact import ArtifactError, load
from models.artifact.quantized import read_quantized
from service.common.cpus import host
from service.common.types import Precision, Runtime
from service.engines.selection.select import EngineOptions

_INT8 = "topfive, int8"
_EQUAL = ("--runtime", "onnxruntime", "--precision", "f32", "--max-batch", "8")  # as the peers have it


def chosen_peers(names: str) -> list[Peer]:
    """The peers of names joined by commas. Raises BadParameter."""
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names.split(",") if name and name not in known]:
        raise click.BadParameter(f"no peer {', '.join(unknown)}; there are {', '.join(known)}", param_hint="--peers")
    return [known[name] for name in names.split(",") if name]


def compare(
    model: str, artifacts: Path, peers: Sequence[Peer], rounds: int, seconds: float, tell: Callable[[str], None]
) -> Measurement:
    """Compare this server, with default settings, as the peers run and in int8 if it can, with the peers."""
    artifact = load(artifacts, model)
    specs = [
        ours("topfive", model, artifacts),
        ours("topfive, ONNX Runtime f32", model, artifacts, *_EQUAL),
        *(peer.installed(artifact.graph) for peer in peers),
    ]
    expected, expected_of = expected_answers(model, artifacts), {}
    if read_quantized(artifact) is not None:
        specs.append(ours(_INT8, model, artifacts, "--precision", "int8"))
        expected_of[_INT8] = expected_answers(model, artifacts, EngineOptions(Runtime.OPENVINO, Precision.INT8))
    with tempfile.TemporaryDirectory(prefix="topfive-benchmark-") as folder:
        comparison = ServerComparison(rounds, seconds, expected, Path(folder), tell, expected_of=expected_of)
        default, equal, *others = servers = comparison.run(specs)
    int8 = others.pop() if expected_of else None
    target = 4.0 if "AMX int8" in host().instruction_sets else 2.5
    return comparison_table(servers, list(comparison_rows(default, equal, others, int8, target)))


def measured(name: str, measure: Callable[[], Measurement], tell: Callable[[str], None]) -> Measurement:
    """What `measure` returns; where it fails, a row that says why."""
    tell(f"measures {name}")
    try:
        return measure()
    except Exception as error:  # a part must not cost the figures of the others, whatever fails in it
        reason = " ".join(str(error).split()) or repr(error)
        tell(f"{name} failed: {reason}")
        return Measurement(name, (), (), [ReportRow(name, note=reason)])


def _how(rounds: int, seconds: float) -> str:
    return (
        f"Rounds: {rounds}, {seconds:g} s for each figure; medians, the lowest and highest in brackets. "
        "In a round each server is started, answers four photos as the model itself does, is loaded and ended; odd "
        "rounds go the other way. Requests hold one photo of 500 x 375 pixels, "
        f"{len(bench_photo()) / 1000:.0f} kB; connections stay and are spread evenly over a server's processes. "
        "Ratios between servers are ratios of the same round. CPU time is that of all processes of the server."
    )


def _interrupt(*_: object) -> None:
    """End the run at SIGTERM as at Ctrl-C, and every server with it."""
    raise KeyboardInterrupt


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model")
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path, exists=True),
    default="artifacts",
    envvar="TOPFIVE_ARTIFACTS",
    show_default=True,
    help="Folder of exported models",
)
@click.option("--peers", default="", help=f"Names joined by commas, of {', '.join(peer.name for peer in PEERS)}")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Each runs every server")
@click.option("--seconds", type=click.FloatRange(min=0.5), default=4.0, show_default=True, help="Length of each run")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="build/benchmarks/report.md",
    show_default=True,
    help="The report",
)
def main(model: str, artifacts: Path, peers: str, rounds: int, seconds: float, output: Path) -> None:
    """Measure this server, and others, and write a report.

    The status is 1 where something could not be measured.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = chosen_peers(peers)
    try:
        load(artifacts, model)
    except ArtifactError as error:
        raise click.UsageError(f"{error}; run: topfive export {model}") from error
    console = Console(stderr=True)
    versions = [(peer.spec.name, pinned_versions(peer)) for peer in chosen]
    report = BenchmarkReport([*describe(), *versions], _how(rounds, seconds))
    parts: dict[str, Callable[[], Measurement]] = {
        "side by side": lambda: compare(model, artifacts, chosen, rounds, seconds, console.log),
        "latency": lambda: latency.measure(model, artifacts, rounds, seconds),
        "overhead": lambda: overhead.measure(model, artifacts, requests=200),
        "decoding": decoding.measure,
    }
    for name, measure in parts.items():
        report.measurements.append(measured(name, measure, console.log))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(report), encoding="utf-8")
    console.print(Markdown("\n".join(targets(report))))
    console.log(f"written: {output}")
    sys.exit(0 if report.complete else 1)


if __name__ == "__main__":
    main()
