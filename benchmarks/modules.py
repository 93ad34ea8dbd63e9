"""Other measurements of this project, each a program that prints JSON: run, flattened, and held to the targets."""

import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.figures import Bound, Row, Target, missing
from benchmarks.subjects import ROOT
from benchmarks.tree import MARK, Tree

_TIMEOUT_S = 600
_TAIL = 400
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A figure of a module with a target: the first whose path, as `flattened` writes it, has that pattern.

    `beside` is the path of one to see it beside, as what the libraries alone cost; the note shows it.
    """

    pattern: str
    title: str
    unit: str
    target: Target
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Module:
    """`python -m benchmarks.NAME --json` with its arguments; `{model}` and `{artifacts}` are filled in."""

    name: str
    wanted: Sequence[Wanted] = ()
    arguments: Sequence[str] = ("--model", "{model}", "--artifacts", "{artifacts}")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a module gave: the rows of its targets, and all its figures by path."""

    name: str
    rows: Sequence[Row]
    figures: Mapping[str, float] = field(default_factory=dict)


def measured(module: Module, model: str, artifacts: Path, timeout_s: float = _TIMEOUT_S) -> Measured:
    """Run it. One that is missing, fails, or lacks a figure has rows that say so."""
    try:
        figures = dict(flattened(_run(module, model, artifacts, timeout_s)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = _reason(error)
        rows = [missing(one.title, reason, one.target) for one in module.wanted]
        return Measured(module.name, rows or [missing(f"benchmarks.{module.name}", reason)])
    return Measured(module.name, [row_of(one, figures, module.name) for one in module.wanted], figures)


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers by their path: keys joined by dots; a list's row is named by its first item and all words in it."""
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


def _run(module: Module, model: str, artifacts: Path, timeout_s: float) -> Any:
    name = f"benchmarks.{module.name}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"there is no {name}")
    arguments = [one.format(model=model, artifacts=artifacts) for one in module.arguments]
    command = [sys.executable, "-m", name, "--json", *arguments]
    mark = uuid.uuid4().hex
    environ, pipe = {**os.environ, MARK: mark}, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            Tree(mark, (process.pid,)).end(_END_S)  # with the servers that it may have left
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return json.loads(out)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"status {error.returncode}: {(error.stderr or error.stdout or '').strip()[-_TAIL:]}"
    return str(error)


def row_of(one: Wanted, figures: Mapping[str, float], module: str) -> Row:
    """The row of a figure, with its path; or that there is none."""
    path = next((path for path in figures if fnmatchcase(path, one.pattern)), None)
    if path is None:
        return missing(one.title, f"benchmarks.{module} gave no {one.pattern!r}", one.target)
    note = f"benchmarks.{module}: {path}"
    if one.beside in figures:
        note += f"; {one.beside}: {figures[one.beside]:.2f}"
    return Row(one.title, (figures[path],), one.unit, one.target, note)


def _most(pattern: str, title: str, unit: str, value: float, beside: str = "") -> Wanted:
    return Wanted(pattern, title, unit, Target(Bound.AT_MOST, value), beside)


def _overhead(kind: str, title: str, value: float) -> Wanted:
    path = f"{kind} x 16, {{}}.cpu_ms"
    return _most(path.format("null decoder"), title, "ms of CPU", value, path.format("libraries alone"))


def _least(pattern: str, title: str, value: float) -> Wanted:
    return Wanted(pattern, title, "", Target(Bound.AT_LEAST, value))


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
        (),
    ),
    Module(
        "drift",
        (
            _most("way=auto.largest", "largest |dp| by scaled decoding, 8 MP", "", 0.02),
            _most("way=auto.other_best", "other best classes by scaled decoding, 8 MP", "photos", 0),
        ),
        ("--artifacts", "{artifacts}", "--each", "1"),
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
        (_least("models=10.ratio", "ten models mixed / one after the other", 0.85),),
        ("--artifacts", "{artifacts}", "--each", "12"),
    ),
)
"""All of them, in the order of the report."""
