"""The command `topfive doctor`: whether `serve` can start on this machine, on what, and what would improve it.

It changes nothing, opens no engine, and does not check the sha256 of files: loading does that.
"""

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import (
    PACKAGED,
    Artifact,
    ArtifactError,
    WeightSource,
    exported_names,
    newest_whole,
    read_manifest,
    root_of,
)
from models.artifact.engine_plan import Flavour
from models.catalog import CATALOG, UnknownModelError
from models.weights.hosts import unreachable
from service.cli.options import options, settings_from
from service.cli.tables import new_table, say
from service.common.cpus import cpu_quota, host
from service.common.model_info import BuiltEngine
from service.common.packages import package_version
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.base import INSTALL
from service.engines.selection.compatibility import Machine, Source, this_machine
from service.engines.selection.select import EngineOptions, Selection, installed

_GOOD, _POOR, _BAD, _DIM = "green", "yellow", "red", "dim"
_PACKAGES = {
    "ONNX Runtime": (("onnxruntime-gpu", "onnxruntime"), "pip install '.[cpu]' or, for GPUs, '.[gpu]'"),
    "OpenVINO": (("openvino",), "pip install openvino"),
    "PyTorch": (("torch",), "pip install '.[export]' (only exports need it)"),
    "cuda-bindings": (("cuda-bindings",), "pip install '.[gpu]'"),
}
_FLAVOURS = {Flavour.TENSORRT: "TensorRT", Flavour.TENSORRT_RTX: "TensorRT for RTX"}


@dataclass(frozen=True, slots=True)
class _ExportedModel:
    """An exported model, with the runtime that would serve it or the `problem` that prevents it.

    `engines` are built for GPUs, `unreadable` names damaged records of such engines; `advice` would improve it.
    """

    name: str
    version: int | None = None
    weights: str = "-"
    runtime: Runtime | None = None
    problem: str = ""
    engines: tuple[BuiltEngine, ...] = ()
    unreadable: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@click.command("doctor")
@options("models", "artifacts", "cache", "host", "port", "grpc_port", "runtime", "precision", "cpus")
@click.pass_obj
def doctor_command(machine: Machine | None, /, **values: Any) -> None:
    """Show what serve would find on this machine, and what would improve it. Exit status 1 if it cannot serve."""
    settings, console = settings_from(values), Console()
    machine = machine or this_machine()
    models = [CATALOG.canonical(name) for name in settings.models]
    packaged = {*models} & {*exported_names(PACKAGED)} - {*exported_names(settings.artifacts)}
    names = sorted({*exported_names(settings.artifacts), *packaged})
    exported = {name: _exported(name, settings, machine) for name in names}
    ports = {
        "REST port": (settings.port, _taken(settings.host, settings.port)),
        "gRPC port": (settings.grpc_port, _taken(settings.host, settings.grpc_port)),
    }
    unwritable = _unwritable(settings.cache_folder)
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_DIM, no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in (*_machine(machine), *_packages(machine), *_host()):
        table.add_row(what, value)
    for what, (number, problem) in ports.items():
        free = f"{number} is free" if number else "any"
        table.add_row(what, Text(f"{number}: {problem}", _BAD) if problem else Text(free))
    cache = f"{settings.cache_folder}: {unwritable or 'can be written'}"
    table.add_row("cache", Text(cache, _POOR if unwritable else ""))
    table.add_row("artifacts", Text(f"{settings.artifacts}: {len(names) - len(packaged) or 'no'} models"))
    console.print(table, Text())
    if exported:
        console.print(_models(exported.values(), machine), Text())
    broken = [*_broken(models, exported, settings), *_broken_ports(ports, settings.host)]
    wanted = [exported[name] for name in models if name in exported]
    for one in wanted:
        if one.runtime:
            say(console, f"{one.name} would be served by {one.runtime}", _BAD if broken else _GOOD)
    for line in broken:
        say(console, f"serve cannot start: {line}", _BAD)
    for line in dict.fromkeys((*_untrained(exported), *_advice(wanted, machine, unwritable))):
        say(console, f"better: {line}", _POOR)
    sys.exit(1 if broken else 0)


def _exported(name: str, settings: Settings, machine: Machine) -> _ExportedModel:
    from service.repository.model_info import built_engine

    options = EngineOptions(
        settings.runtime, settings.precision, settings.cpus or cpu_quota(), cache=settings.cache_folder
    )
    try:
        (number, manifest), newer = newest_whole(settings.artifacts, name, read_manifest)
    except ArtifactError as error:
        return _ExportedModel(name, problem=str(error))
    folder, weights = root_of(settings.artifacts, name) / name / str(number), manifest.weights
    source = weights.source if weights.source == weights.name else f"{weights.source}: {weights.name}"
    missing = [file for file in manifest.files if not (folder / file).is_file()]
    selection = Selection.of(Artifact(folder, number, manifest, ()), options, machine)
    expected, passed = selection.expected()
    engines = tuple(map(built_engine, selection.fits))
    refusal = selection.refusal([attempt.reason or attempt.doubt for attempt in passed])
    problem = "" if expected else f"nothing runs {name}: {refusal}"
    if missing:
        problem = f"{folder} lacks {', '.join(missing)}; export it again"
    failed = [f"{name} on {attempt.reason}" for attempt in passed if attempt.fit and expected]
    in_int8 = [one for one in passed if not one.fit and one.precision is Precision.INT8 and expected]
    failed += [f"{name} on {one.runtime}: {one.reason}" for one in in_int8]
    better = _for_cards(name, engines, settings, machine) if machine.cards.found else None
    return _ExportedModel(
        name=name,
        version=number,
        weights=f"{source} (comes with topfive)" if manifest.packaged else source,
        runtime=None if problem or expected is None else expected.runtime,
        problem=problem,
        engines=engines,
        unreadable=(*newer, *selection.damage),
        advice=() if missing else (*filter(None, [better]), *failed),
    )


def _for_cards(name: str, engines: Sequence[BuiltEngine], settings: Settings, machine: Machine) -> str | None:
    """The command by which an engine built for a GPU would serve this model, or None if one does."""
    if any(engine.fits for engine in engines):
        return None
    if engines:
        best = engines[0]
        run = f"; run: {best.remedy}" if best.remedy else ""
        return f"no engine of {name} fits; {best.name}: {best.reason}{run}"
    if settings.precision is Precision.BF16:
        return None
    return Source(name, settings.artifacts, "").nothing_built(machine.best_flavour, machine, settings.precision)


def _machine(machine: Machine) -> Iterator[tuple[str, Text]]:
    cards = machine.cards
    yield "NVIDIA driver", Text(machine.driver or "none")
    for card in cards.found:
        memory = f"{_gib(card.free_bytes)} of {_gib(card.memory_bytes)} GiB free"
        yield f"GPU {card.index}", Text(f"{card.name}, {card.target}, {memory}", _GOOD)
    if not cards.found:
        yield "cards", Text(f"none: {cards.reason}")


def _packages(machine: Machine) -> Iterator[tuple[str, Text]]:
    found = [(name, machine.versions.get(flavour), INSTALL[flavour]) for flavour, name in _FLAVOURS.items()]
    found += [(name, package_version(*names), install) for name, (names, install) in _PACKAGES.items()]
    for name, version, install in found:
        yield name, Text(version) if version else Text(f"not installed: {install}", _DIM)


def _host() -> Iterator[tuple[str, Text]]:
    found = host()
    fewer = f" of {found.all_cpus}, by quota or affinity" if found.cpus < found.all_cpus else ""
    yield "CPUs", Text(f"{found.cpus}{fewer}")
    yield "instructions", Text(", ".join(found.instruction_sets) or "none of AVX2, AVX-512 and AMX")
    limit = "no limit" if found.limit_bytes is None else f"limit {_gib(found.limit_bytes)} GiB"
    memory = "" if found.memory_bytes is None else f", machine {_gib(found.memory_bytes)} GiB"
    yield "memory", Text(f"{limit}{memory}")


def _models(exported: Iterable[_ExportedModel], machine: Machine) -> Table:
    """A row for each model. Why no GPU can be used is printed once, above."""
    table = new_table("model", "weights", "would run on", "built for GPUs")
    for one in exported:
        lines = [Text(line, _POOR) for line in one.unreadable]
        for engine in one.engines:
            reason = "fits" if engine.fits else engine.reason if machine.cards.found else "no GPU"
            lines.append(Text(f"{engine.name}: {reason}", _GOOD if engine.fits else _POOR))
        runs_on = Text(one.runtime, _GOOD) if one.runtime else Text(one.problem, _BAD)
        name = one.name if one.version is None else f"{one.name} v{one.version}"
        table.add_row(Text(name), Text(one.weights), runs_on, Text("\n").join(lines) if lines else "-")
    return table


def _taken(address: str, port: int) -> str | None:
    """Why nothing can listen there, or None. It listens for a moment to find out."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: ignores closed connections
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unwritable(folder: Path) -> str | None:
    """Why the folder cannot be written, or None. A missing folder is made when it is needed."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written by this user"


def _broken(models: Sequence[str], exported: Mapping[str, _ExportedModel], settings: Settings) -> Iterator[str]:
    for name in models:
        if (one := exported.get(name)) is not None:
            if one.problem:
                yield one.problem
        elif name in CATALOG:
            yield f"{name} is not exported; run: topfive export {name} --artifacts {settings.artifacts}"
        else:
            yield str(UnknownModelError(name, {*CATALOG.names(), *exported}))


def _broken_ports(ports: Mapping[str, tuple[int, str | None]], address: str) -> Iterator[str]:
    yield from (f"port {number} of {address}: {problem}" for number, problem in ports.values() if problem)
    numbers = [number for number, _ in ports.values() if number]
    if len(numbers) > len(set(numbers)):
        yield f"port {numbers[0]} is asked for twice; choose another --port or --grpc-port"


def _untrained(exported: Mapping[str, _ExportedModel]) -> Iterator[str]:
    """For each untrained model with published weights: that it is, and whether their host answers, asked once each."""
    reasons: dict[tuple[str, ...], str] = {}
    for name, one in exported.items():
        weights = CATALOG[name].default_weights if name in CATALOG else None
        if one.weights == WeightSource.UNTRAINED and weights is not None:
            if weights.urls not in reasons:
                reasons[weights.urls] = unreachable(CATALOG[name], None)
            reason = reasons[weights.urls] or "the host of its weights answers"
            yield f"{name} is untrained, so its answers mean nothing; {reason}; run: topfive export {name}"


def _advice(wanted: Sequence[_ExportedModel], machine: Machine, unwritable: str | None) -> Iterator[str]:
    """Suggestions, the most important first. GPUs are left out if the machine is not set up for them."""
    cards = machine.cards
    if cards.found and cards.reason:
        yield cards.reason
    elif machine.driver is not None and not cards.found:
        yield f"there is an NVIDIA driver and no GPU can be used: {cards.reason}"
    for one in wanted:
        yield from one.advice
    if not installed(Runtime.OPENVINO):
        yield "OpenVINO uses the CPU best; run: pip install openvino"
    if unwritable is not None:
        yield f"nothing is kept between starts: {unwritable}; name another folder with --cache"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"
