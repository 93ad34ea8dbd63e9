"""The command `topfive show`: describes one model, including the figures of its paper."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import Artifact, root_of
from models.artifact.engine_plan import read_plans
from models.artifact.measured import Proportion, protocol
from models.artifact.quantized import QuantizationRecord, QuantizedGraphError, read_quantized
from service.cli.options import option, options, settings_from
from service.cli.tables import accuracy, new_table, parameter_count, rate, rate_and_interval
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.model_info import ModelDetail
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.selection.compatibility import survey, this_machine
from service.engines.selection.cpu_layout import at_most, default_layout, read_tuned
from service.rest.schemas import to_dict

if TYPE_CHECKING:
    from service.repository.exported import ModelEntry


@click.command("show")
@click.argument("name")
@option("--json", "as_json", is_flag=True, help="Print what GET /models/NAME answers")
@options("artifacts", "cpus")
def show_command(name: str, as_json: bool, **values: Any) -> None:
    """Print the model NAME: size, input, weights, published and measured accuracy, parity."""
    from service.repository.model_info import model_detail
    from service.server.data_plane import build_data_plane

    try:
        settings = settings_from(values)
        entry = build_data_plane(settings).repository.entry(name)
        known = _on_this_machine(model_detail(entry), settings, entry)
    except TopfiveError as error:
        raise click.ClickException(error.detail) from error
    if as_json:
        click.echo(json.dumps(to_dict(known), indent=2))
    else:
        for table in (_facts(known), _accuracy(known), _parity(known), _built(known)):
            if table.row_count:
                Console().print(table, Text())


def _on_this_machine(known: ModelDetail, settings: Settings, entry: "ModelEntry") -> ModelDetail:
    """`known` with the engines in the artifact that were built for GPUs, and the layout with `--runtime auto`.

    Its warnings name records of both that cannot be read. A model that is not exported has neither.
    """
    from service.repository.model_info import built_engine

    if entry.exported is None:
        return known
    version, manifest = entry.exported
    root = root_of(settings.artifacts, entry.name)
    artifact = Artifact(root / entry.name / str(version), version, manifest, ())
    plans, unreadable = read_plans(artifact.folder)
    fits = survey(artifact, this_machine(), Precision.AUTO)[0] if plans else ()
    try:
        quantized = read_quantized(artifact)
    except QuantizedGraphError as error:
        quantized, unreadable = None, [*unreadable, str(error)]
    cpus = settings.cpus or cpu_quota()
    tuned = read_tuned(artifact, cpus)
    _, layout = tuned.choose(Runtime.AUTO, Precision.AUTO, Precision.BF16)
    layout = layout or default_layout(cpus)
    return replace(
        known,
        engines=tuple(map(built_engine, fits)),
        quantized=quantized.record if quantized else None,
        warnings=(*known.warnings, *unreadable, *tuned.notes),
        layout=replace(layout, max_batch=at_most(layout.max_batch, artifact)),
    )


def _facts(known: ModelDetail) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    spec = known.input
    paper = f", {known.published_macs:,} in the paper" if known.published_macs else ""
    rows = {
        "model": f"{known.name}, version {known.version}" if known.version else f"{known.name}, not exported",
        "origin": "it comes with topfive, because no version is exported" if known.packaged else None,
        "family": ", ".join(str(part) for part in (known.family, known.configuration, known.year) if part),
        "paper": known.paper,
        "ILSVRC": known.ilsvrc,
        "note": known.note,
        "depth": f"{known.depth} layers with weights" if known.depth else None,
        "parameters": parameter_count(known),
        "MACs": f"{known.macs:,}{paper}",
        "classes": str(known.classes),
        "input": f"{spec.fit} {spec.resize}, centre {spec.crop}, {spec.interpolation}, {spec.channels}",
        "mean, std": f"{_numbers(spec.mean)}; {_numbers(spec.std)}",
        "on the CPU": str(known.layout) if known.layout else None,
        "int8": _quantized(known.quantized) if known.quantized else None,
        "weights": f"{known.weights_file.source}: {known.weights_file.name}" if known.weights_file else None,
        "sha256": known.weights_file.sha256 if known.weights_file else None,
    }
    for what, value in rows.items():
        if value:
            table.add_row(what, Text(value))
    for warning in known.warnings:
        table.add_row(Text("warning", style="yellow"), Text(warning, style="yellow"))
    return table


def _quantized(record: QuantizationRecord) -> str:
    """How the int8 graph was made, and its speed beside that of the other precisions."""
    kept = f", {len(record.floating_point)} layers in floating point" if record.floating_point else ""
    speeds = ", ".join(f"{one.images_per_s:.0f} in {one.precision}" for one in record.speeds)
    return (
        f"NNCF {record.nncf_version}, {record.photos} photos{kept}; images/s when it was made, on "
        f"{record.conditions.cpus} CPUs: {speeds}"
    )


def _accuracy(known: ModelDetail) -> Table:
    """Accuracy in percent: of the paper, of published weights, and of measurements on the user's images."""
    table = new_table("accuracy in %", numbers=("top-1", "top-5"))
    table.add_column("on")
    for errors in known.published_errors:
        table.add_row("paper", rate(accuracy(errors.top1)), rate(accuracy(errors.top5)), Text(errors.protocol))
    for weights in known.published:
        table.add_row(Text(f"weights {weights.tag}"), rate(weights.acc1), rate(weights.acc5), Text(weights.dataset))
    for one in known.measured:
        on = f"{one.images:,} images of {one.dataset}, {one.runtime} {one.precision}, {protocol(one.crops)}, {one.date}"
        table.add_row(
            "measured",
            _measured(one.acc1, one.acc1_low, one.acc1_high),
            _measured(one.acc5, one.acc5_low, one.acc5_high),
            Text(on),
        )
    return table


def _parity(known: ModelDetail) -> Table:
    """The parity of each engine with PyTorch, or with the imported file."""
    table = new_table("engine", "precision", "max |dp|", "cosine", "top-1 agrees", "used")
    for report in (*known.parity, *([known.quantized.parity] if known.quantized else ())):
        table.add_row(
            f"{report.runtime} {report.runtime_version}",
            report.precision,
            f"{report.max_abs_diff:.2g}",
            f"{report.logit_cosine:.6f}",
            f"{report.top1_agreement:.1%}",
            Text("yes", style="green") if report.passed else Text("no", style="yellow"),
        )
    return table


def _built(known: ModelDetail) -> Table:
    """The engines that were built for NVIDIA GPUs, and why some do not fit here."""
    table = new_table("built", numbers=("batches", "MB"))
    table.add_column("fits here", overflow="fold")
    for engine in known.engines:
        differs = Text(f"no: {engine.reason}", style="yellow")
        if engine.remedy:
            differs.append(f"\nrun: {engine.remedy}")
        table.add_row(
            Text(engine.name),
            f"{engine.smallest} to {engine.largest}",
            f"{engine.size_bytes / 1e6:.1f}",
            Text("yes", style="green") if engine.fits else differs,
        )
    return table


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _measured(accuracy: float | None, low: float | None, high: float | None) -> str:
    if accuracy is None or low is None or high is None:
        return rate(None)
    return rate_and_interval(Proportion(accuracy, low, high))
