"""The other measurements of this package: each is a program that prints JSON, whose figures are held to targets."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.figures import FigureTarget, ReportRow, missing
from benchmarks.server_under_test import ProcessTree
from benchmarks.servers import ROOT

_TIMEOUT_S = 600
_STOP_TIMEOUT_S = 5.0
_ERROR_TAIL = 400


@dataclass(frozen=True, slots=True)
class WantedFigure:
    """A figure of a module with a target: the first whose path, as `flattened` writes it, matches the pattern.

    `beside` is the path of another figure that the note shows, such as what the libraries alone cost.
    """

    pattern: str
    title: str
    unit: str
    target: FigureTarget
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Module:
    """`python -m benchmarks.NAME` with its arguments, in which `{model}` and `{artifacts}` are filled in."""

    name: str
    wanted: Sequence[WantedFigure] = ()
    arguments: Sequence[str] = ("--json", "--model", "{model}", "--artifacts", "{artifacts}")


@dataclass(frozen=True, slots=True)
class ModuleFigures:
    """What a module measured: the rows of its targets, and all its figures by their paths."""

    name: str
    rows: Sequence[ReportRow]
    figures: Mapping[str, float] = field(default_factory=dict)


def measured(module: Module, model: str, artifacts: Path, timeout_s: float = _TIMEOUT_S) -> ModuleFigures:
    """Run a module. Where it is missing, fails, or lacks a figure, its rows say so."""
    try:
        figures = dict(flattened(run_module(module, model, artifacts, timeout_s)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            reason = f"status {error.returncode}: {(error.stderr or error.stdout or '').strip()[-_ERROR_TAIL:]}"
        rows = [missing(one.title, reason, one.target) for one in module.wanted]
        return ModuleFigures(module.name, rows or [missing(f"benchmarks.{module.name}", reason)])
    return ModuleFigures(module.name, [row_of(one, figures, module.name) for one in module.wanted], figures)


def run_module(module: Module, model: str, artifacts: Path, timeout_s: float) -> Any:
    """The JSON that a module prints. No process that it started outlives the call.

    Raises ValueError where there is no such module or its output is no JSON, CalledProcessError where it fails, and
    TimeoutExpired.
    """
    name = f"benchmarks.{module.name}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"there is no {name}")
    arguments = [one.format(model=model, artifacts=artifacts) for one in module.arguments]
    command, pipe, tree = [sys.executable, "-m", name, *arguments], subprocess.PIPE, ProcessTree()
    with subprocess.Popen(
        command, cwd=ROOT, env=tree.environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        finally:
            tree.stop([process], _STOP_TIMEOUT_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return json.loads(output)


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in a JSON value with its path, which is its keys joined by dots.

    An object in a list is named by its first entry and by its entries that are text, as `models=10` or `way=auto`.
    """
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            name = str(place)
            if isinstance(inner, dict) and inner:
                named = [pair for place, pair in enumerate(inner.items()) if place == 0 or isinstance(pair[1], str)]
                name = " ".join(f"{key}={one}" for key, one in named)
            yield from flattened(inner, f"{path}.{name}" if path else name)


def row_of(wanted: WantedFigure, figures: Mapping[str, float], module: str) -> ReportRow:
    """The row of a wanted figure, or a row which says that the module has none."""
    path = next((path for path in figures if fnmatchcase(path, wanted.pattern)), None)
    if path is None:
        return missing(wanted.title, f"benchmarks.{module} gave no {wanted.pattern!r}", wanted.target)
    note = f"benchmarks.{module}: {path}"
    if wanted.beside in figures:
        note += f"; {wanted.beside}: {figures[wanted.beside]:.2f}"
    return ReportRow(wanted.title, (figures[path],), wanted.unit, wanted.target, note)


def _most(pattern: str, title: str, unit: str, value: float, beside: str = "") -> WantedFigure:
    return WantedFigure(pattern, title, unit, FigureTarget(at_most=value), beside)


def _overhead(kind: str, title: str, value: float) -> WantedFigure:
    path = f"{kind} x 16, {{}}.cpu_ms"
    return _most(path.format("null decoder"), title, "ms of CPU", value, path.format("libraries alone"))


_LARGE = "width=3266 way=auto *.ratio"
_QUARTER = "width=3266 way=fast scale=1/4.ratio"  # how near the target decoding to a quarter of the side would come

MODULES = (
    Module(
        "overhead",
        (
            _overhead("multipart", "overhead of REST, 100 kB multipart", 0.8),
            _overhead("gRPC", "overhead of gRPC, 100 kB", 0.4),
        ),
    ),
    Module(
        "decoding",
        (
            _most("width=500 way=auto *.ratio", "decode and resize / plain Pillow, 500 x 375", "of its CPU time", 0.65),
            _most(_LARGE, "decode and resize / plain Pillow, 8 MP", "of its CPU time", 0.2, _QUARTER),
        ),
        ("--json",),
    ),
    Module(
        "drift",
        (
            _most("way=auto.largest", "largest |dp| by scaled decoding, 8 MP", "", 0.02),
            _most("way=auto.other_best", "other best classes by scaled decoding, 8 MP", "photos", 0),
        ),
        ("--json", "--artifacts", "{artifacts}", "--each", "1"),
    ),
    Module(
        "start",
        (
            _most("start_s", "start to ready, compiled before", "s", 2.0),
            _most("after_requests.resident", "resident after 200 requests at 16 connections", "MiB", 350.0),
        ),
    ),
    Module(
        "models",
        (WantedFigure("models=10.ratio", "ten models mixed / one after the other", "", FigureTarget(at_least=0.85)),),
        ("--json", "--artifacts", "{artifacts}", "--each", "12"),
    ),
)
"""All of them, in the order of the report."""
