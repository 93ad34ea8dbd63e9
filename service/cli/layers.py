"""The command `topfive layers`: the layers of a model with their costs, as a table or JSON."""

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from os.path import commonprefix
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.analysis.layer_table import Kind, LayerTable
from models.artifact.artifact import NotExportedError
from models.catalog import Architecture
from service.cli.options import option, options, settings_from
from service.cli.tables import new_table, prefixed, say
from service.common.errors import ModelNotFound, TopfiveError
from service.common.model_info import LayerRow, ModelLayers, StageRow
from service.rest.schemas import to_dict

if TYPE_CHECKING:
    from service.repository.repository import Repository

_LONGEST_WORD = len("convolution")
_TORCH = ("torch", "torchvision")


@click.command("layers")
@click.argument("name")
@option("--stages", "only_stages", is_flag=True, help="Only the totals of each stage")
@option("--json", "as_json", is_flag=True, help="Print a JSON object, as GET /models/NAME/layers answers")
@options("artifacts")
def layers_command(name: str, only_stages: bool, as_json: bool, **values: Any) -> None:
    """Print the layers of NAME: maps, parameters, multiply-accumulates, receptive fields.

    The artifact of an exported or imported model has them. For other models of the catalog they are computed, which
    needs PyTorch.
    """
    from service.server.data_plane import build_data_plane

    try:
        known = _layers(build_data_plane(settings_from(values)).repository, name)
    except TopfiveError as error:
        say(Console(stderr=True), f"error: {error.detail}", "red")
        sys.exit(1)
    if as_json:
        reply = to_dict(known)
        if only_stages:
            del reply["layers"]
        click.echo(json.dumps(reply, indent=2))
    else:
        console = Console()
        version = "computed, not exported" if known.version is None else f"version {known.version}"
        console.print(Text(f"{known.model} ({version}), input {_sizes(known.input_shape)}", "bold"))
        console.print(_stage_table(known) if only_stages else _layer_table(known))
        note = "MACs: multiply-accumulates for one image; field: pixels of the input that one value sees"
        console.print(Text(note, "dim"))
        last = known.layers[-1].stage
        if any(one.kind == Kind.GLOBAL_AVERAGE_POOLING and one.stage != last for one in known.layers):
            console.print(Text("squeeze-and-excitation pools the whole map, so later fields hold all of it", "dim"))


def _layers(repository: "Repository", name: str) -> ModelLayers:
    """The layers from the artifact, or without one from the network. Raises TopfiveError."""
    from service.repository.model_info import layers_of, model_layers

    entry = repository.entry(name)
    if entry.exported is not None or entry.damage is not None or entry.architecture is None:
        return model_layers(entry, repository.root_of(entry.name))
    try:
        return layers_of(entry.name, None, _computed(entry.architecture))
    except ModuleNotFoundError as error:
        if error.name not in _TORCH:
            raise
        missing = NotExportedError(entry.name, repository.root_of(entry.name))
        raise ModelNotFound(f"{missing}; to see its layers before: pip install '.[export]'") from error


def _computed(architecture: Architecture) -> LayerTable:
    """The layers of a network of the catalog. Needs torch."""
    from models.analysis.trace import network_layers
    from models.build import build

    return network_layers(build(architecture), architecture.input, architecture.stages)


def _layer_table(known: ModelLayers) -> Table:
    """A row for each layer, and totals after each stage and at the end.

    Names are relative to the module that holds the whole stage: `.0.conv1` is `layer1.0.conv1`.
    """
    table = _empty("layer", "kind", "kernel", "output")
    stages = iter(known.stages)
    for _name, group in groupby(known.layers, key=lambda layer: layer.stage):
        rows = list(group)
        within = ".".join(commonprefix([layer.name.split(".")[:-1] for layer in rows]))  # noqa: RUF071 - of lists
        for layer in rows:
            own = layer.name.removeprefix(within)
            kind = "\n".join(wrap(layer.kind, _LONGEST_WORD))
            table.add_row(own, kind, _kernel(layer), _sizes(layer.output), *_numbers(layer))
        stage = next(stages)
        table.add_row(stage.name, "stage", "", _sizes(stage.output), *_numbers(stage), style="bold", end_section=True)
    table.add_row("total", "", "", "", *_cost(known), "100.0", "", style="bold")
    return table


def _stage_table(known: ModelLayers) -> Table:
    """A row for each stage, and the total."""
    table = _empty("stage", "layers", "output")
    for stage in known.stages:
        table.add_row(stage.name, str(stage.layers), _sizes(stage.output), *_numbers(stage))
    table.add_section()
    table.add_row("total", str(len(known.layers)), "", *_cost(known), "100.0", "", style="bold")
    return table


def _empty(*columns: str) -> Table:
    """A table without rows: these columns, then the numeric columns."""
    table = new_table()
    table.padding = 0
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in ("layer", "stage"))
    for name in ("params", "MACs", "%", "field"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _numbers(row: LayerRow | StageRow) -> tuple[str, ...]:
    """Parameters, operations, their share in percent, and the receptive field."""
    seen = row.receptive_field
    field = "-" if seen is None else str(seen[0]) if seen[0] == seen[1] else _sizes(seen)
    return *_cost(row), f"{row.share:.1f}", field


def _cost(part: LayerRow | StageRow | ModelLayers) -> tuple[str, str]:
    """Parameters and operations."""
    return prefixed(part.parameters), prefixed(part.macs)


def _kernel(layer: LayerRow) -> str:
    """The kernel, 3x3; with a stride other than 1, 3x3/2; with groups that the kind does not imply, 3x3/2 g2."""
    if layer.kernel is None or layer.stride is None:
        return "" if layer.kernel is None else _sizes(layer.kernel)
    high, wide = layer.stride
    stride = "" if high == wide == 1 else f"/{high}" if high == wide else f"/{_sizes(layer.stride)}"
    grouped = layer.groups and layer.groups > 1 and layer.kind != Kind.DEPTHWISE
    groups = f" g{layer.groups}" if grouped else ""
    return f"{_sizes(layer.kernel)}{stride}{groups}"


def _sizes(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
