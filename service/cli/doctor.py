"""The command `topfive doctor`: shows what `serve` would find on this machine."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.cli.diagnosis import DiagnosedModel, Diagnosis, diagnose
from service.cli.options import option, options, settings_from
from service.cli.tables import new_table
from service.common.settings import Settings
from service.engines.selection.compatibility import Machine

_GOOD, _POOR, _BAD, _DIM = "green", "yellow", "red", "dim"


@click.command("doctor", short_help="Show what serve would find on this machine.")
@option("--json", "as_json", is_flag=True, help="Print a JSON object")
@options("models", "artifacts", "cache", "host", "port", "grpc_port", "runtime", "precision", "cpus")
def doctor_command(as_json: bool, **values: Any) -> None:
    """Show what serve would find on this machine, and what would improve it. Exit status 1 if it cannot serve."""
    settings = settings_from(values)
    found = diagnose(settings)
    if as_json:
        click.echo(json.dumps(_to_json(found), indent=2))
    else:
        console = Console()
        console.print(_screen(found, settings))
        for line in _verdict(found):
            console.print(line, soft_wrap=True)  # so that a command can be copied
    sys.exit(1 if found.broken else 0)


def _to_json(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis with compute capabilities as `sm89`."""
    content = asdict(found)
    for card, made in zip(content["machine"]["cards"]["found"], found.machine.cards.found, strict=True):
        card["target"] = str(made.target)
    return content


def _screen(found: Diagnosis, settings: Settings) -> RenderableType:
    rows = [*_cards(found), *_packages(found), *_host(found), *_places(found, settings)]
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_DIM, no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in rows:
        table.add_row(what, value)
    return Group(table, Text(), *_artifacts(found))


def _cards(found: Diagnosis) -> Iterator[tuple[str, Text]]:
    machine = found.machine
    yield "NVIDIA driver", Text(machine.driver or "none")
    for card in machine.cards.found:
        memory = f"{_gib(card.free_bytes)} of {_gib(card.memory_bytes)} GiB free"
        yield f"GPU {card.index}", Text(f"{card.name}, {card.target}, {memory}", _GOOD)
    if machine.cards.found and machine.cards.reason:
        yield "cards", Text(machine.cards.reason, _POOR)
    if not machine.cards.found:
        yield "cards", Text(f"none: {machine.cards.reason}")


def _packages(found: Diagnosis) -> Iterator[tuple[str, Text]]:
    for package in found.packages:
        if package.version is None:
            yield package.name, Text(f"not installed: {package.install}", _DIM)
        else:
            details = f" ({', '.join(package.details)})" if package.details else ""
            yield package.name, Text(f"{package.version}{details}")


def _host(found: Diagnosis) -> Iterator[tuple[str, Text]]:
    host = found.host
    fewer = f" of {host.all_cpus}, by quota or affinity" if host.cpus < host.all_cpus else ""
    yield "CPUs", Text(f"{host.cpus}{fewer}")
    yield "instructions", Text(", ".join(host.instruction_sets) or "none of AVX2, AVX-512 and AMX")
    limit = "no limit" if host.limit_bytes is None else f"limit {_gib(host.limit_bytes)} GiB"
    memory = "" if host.memory_bytes is None else f", machine {_gib(host.memory_bytes)} GiB"
    yield "memory", Text(f"{limit}{memory}")


def _places(found: Diagnosis, settings: Settings) -> Iterator[tuple[str, Text]]:
    for name, port in zip(("REST port", "gRPC port"), found.ports, strict=True):
        if port.problem:
            yield name, Text(f"{port.number}: {port.problem}", _BAD)
        else:
            yield name, Text("any" if port.number == 0 else f"{port.number} is free")
    cache = f"{settings.cache_folder}: "
    problem = found.cache_problem
    yield "cache", Text(cache + problem, _POOR) if problem else Text(f"{cache}can be written")
    yield "artifacts", Text(f"{settings.artifacts}: {len(found.artifacts) or 'no'} models")


def _artifacts(found: Diagnosis) -> Iterator[RenderableType]:
    if not found.artifacts:
        return
    table = new_table()
    for column in ("model", "weights", "would run on", "built for GPUs"):
        table.add_column(column, overflow="fold")
    for one in found.artifacts:
        name = one.name if one.version is None else f"{one.name} v{one.version}"
        table.add_row(Text(name), Text(one.weights or "-"), _runs_on(one), _engines(one, found.machine))
    yield table
    yield Text()


def _runs_on(one: DiagnosedModel) -> Text:
    if one.damage:
        return Text(f"damaged: {one.damage}", _BAD)
    return Text(one.runtime, _GOOD) if one.runtime else Text(f"nothing: {one.refusal}", _BAD)


def _engines(one: DiagnosedModel, machine: Machine) -> Text:
    """A line for each engine. Why no GPU can be used is printed once, above."""
    lines = []
    for engine in one.engines:
        name = f"{engine.runtime} {'+'.join(engine.targets)} {engine.precision}"
        reason = engine.reason if machine.cards.found else "no GPU"
        lines.append(Text(f"{name}: fits", _GOOD) if engine.fits else Text(f"{name}: {reason}", _POOR))
    lines += [Text(line, _POOR) for line in one.unreadable]
    return Text("\n").join(lines) if lines else Text("-")


def _verdict(found: Diagnosis) -> Iterator[Text]:
    for one in found.artifacts:
        if one.name in found.models and one.runtime and not one.damage:
            yield Text(f"{one.name} would be served by {one.runtime}", _BAD if found.broken else _GOOD)
    for line in found.broken:
        yield Text(f"serve cannot start: {line}", _BAD)
    for line in found.advice:
        yield Text(f"better: {line}", _POOR)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"
