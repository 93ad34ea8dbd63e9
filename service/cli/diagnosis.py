"""What `serve` would find on this machine: cards, packages, processor, ports, folders, artifacts, and what they lack.

Reads and asks, and changes nothing; neither opens an engine nor hashes an artifact.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.artifact.artifact import Artifact, ArtifactError, Manifest, exported_names, read_manifest
from models.artifact.engine_plan import Flavour
from models.catalog import CATALOG, UnknownModelError
from service.common.cpus import Host, host
from service.common.model_info import BuiltEngine
from service.common.packages import package_version
from service.common.types import Precision, Runtime
from service.engines.base import INSTALL
from service.engines.selection.compatibility import Machine, Source, this_machine
from service.engines.selection.select import EngineOptions, Selection, installed
from service.repository.model_info import built_engine

_PACKAGES = {
    "ONNX Runtime": (("onnxruntime-gpu", "onnxruntime"), "pip install '.[cpu]' or, for cards, '.[gpu]'"),
    "OpenVINO": (("openvino",), "pip install openvino"),
    "PyTorch": (("torch",), "pip install '.[export]' (only exports need it)"),
    "cuda-bindings": (("cuda-bindings",), "pip install '.[gpu]'"),
}
_FLAVOURS = {Flavour.TENSORRT: "TensorRT", Flavour.TENSORRT_RTX: "TensorRT for RTX"}


@dataclass(frozen=True, slots=True)
class Question:
    """What would be served: names, folders, address and ports (0 takes any), and what is asked of engines."""

    models: tuple[str, ...]
    artifacts: Path
    host: str
    ports: tuple[int, ...]
    options: EngineOptions


@dataclass(frozen=True, slots=True)
class Package:
    """A package, its version or None, and the command that installs it; `details` are ONNX Runtime's providers."""

    name: str
    version: str | None
    install: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model: what would serve it, or why nothing does; `damage` says why it cannot be loaded at all.

    Its files are not compared with their sha256; loading does that. `unreadable` are records of engines, `failed` says
    which engines fit and are known not to answer rightly here.
    """

    name: str
    version: int | None
    weights: str | None
    engines: tuple[BuiltEngine, ...]
    runtime: Runtime | None
    refusal: str | None
    damage: str | None
    unreadable: tuple[str, ...]
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port to listen on, and why that is not possible."""

    number: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found. `broken` keeps `serve` from starting, `advice` makes it better.

    `models` are those that would be loaded at the start.
    """

    models: tuple[str, ...]
    machine: Machine
    host: Host
    packages: tuple[Package, ...]
    ports: tuple[Port, ...]
    cache_problem: str | None
    artifacts: tuple[Exported, ...]
    broken: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose(
    question: Question, *, look: Callable[[], Machine] = this_machine, measure: Callable[[], Host] = host
) -> Diagnosis:
    """What there is for `question`; `look` and `measure` find out what machine this is."""
    machine = look()
    exported = tuple(_exported(name, question, machine) for name in exported_names(question.artifacts))
    ports = tuple(Port(number, _taken(question.host, number)) for number in question.ports)
    cache = _unwritable(question.options.cache)
    return Diagnosis(
        models=question.models,
        machine=machine,
        host=measure(),
        packages=_packages(machine),
        ports=ports,
        cache_problem=cache,
        artifacts=exported,
        broken=tuple(_broken(question, exported, ports)),
        advice=tuple(dict.fromkeys(_advice(question, machine, exported, cache))),
    )


def _exported(name: str, question: Question, machine: Machine) -> Exported:
    root, options = question.artifacts, question.options
    try:
        number, manifest = read_manifest(root, name)
    except ArtifactError as error:
        return Exported(name, None, None, (), None, None, str(error), ())
    folder = root / name / str(number)
    missing = [file for file in manifest.files if not (folder / file).is_file()]
    damage = f"{folder} lacks {', '.join(missing)}; export it again" if missing else None
    selection = Selection.of(Artifact(folder, number, manifest, ()), options, machine)
    expected, passed = selection.expected()
    refusal = None if expected else selection.refusal([attempt.reason or attempt.doubt for attempt in passed])
    return Exported(
        name,
        number,
        _weights(manifest),
        engines=tuple(map(built_engine, selection.fits)),
        runtime=expected.runtime if expected else None,
        refusal=refusal,
        damage=damage,
        unreadable=selection.damage,
        failed=tuple(attempt.reason for attempt in passed if attempt.fit) if expected else (),
    )


def _weights(manifest: Manifest) -> str:
    source, name = manifest.weights.source, manifest.weights.name
    return source if source == name else f"{source}: {name}"


def _packages(machine: Machine) -> tuple[Package, ...]:
    flavours = [Package(name, machine.versions.get(one), INSTALL[one]) for one, name in _FLAVOURS.items()]
    others = [Package(name, package_version(*names), install) for name, (names, install) in _PACKAGES.items()]
    return tuple(
        Package(one.name, one.version, one.install, _providers()) if one.name == "ONNX Runtime" and one.version else one
        for one in (*flavours, *others)
    )


def _providers() -> tuple[str, ...]:
    from service.engines.onnxruntime import providers

    return tuple(name.removesuffix("ExecutionProvider") for name in providers())


def _taken(address: str, port: int) -> str | None:
    """Why nothing can listen there, found out by listening for a moment."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do, past closed connections
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be kept there; a folder that is not there yet is made when it is needed."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written by this user"


def _broken(question: Question, exported: tuple[Exported, ...], ports: tuple[Port, ...]) -> list[str]:
    known = {one.name: one for one in exported}
    lines = []
    for name in question.models:
        if (one := known.get(name)) is None and name not in CATALOG:
            lines.append(str(UnknownModelError(name, {*CATALOG.names(), *known})))
        elif one is None:
            lines.append(f"{name} is not exported; run: topfive export {name} --artifacts {question.artifacts}")
        elif one.damage:
            lines.append(one.damage)
        elif one.refusal:
            lines.append(f"nothing runs {name}: {one.refusal}")
    lines += [f"port {one.number} of {question.host}: {one.problem}" for one in ports if one.problem]
    twice = {one.number for one in ports if one.number and question.ports.count(one.number) > 1}
    return [*lines, *(f"port {number} is asked for twice; choose another --port or --grpc-port" for number in twice)]


def _advice(question: Question, machine: Machine, exported: tuple[Exported, ...], cache: str | None) -> list[str]:
    """What would make it better, the most important first; nothing of cards where nobody expects one."""
    lines = []
    if machine.driver is not None and not machine.cards.found:
        lines.append(f"there is an NVIDIA driver and no card can be used: {machine.cards.reason}")
    if machine.cards.found:
        lines += filter(None, [machine.cards.reason])
        wanted = [one for one in exported if one.name in question.models and one.damage is None]
        lines += filter(None, (_of_cards(one, question, machine) for one in wanted))
        lines += [f"{one.name} on {why}" for one in wanted for why in one.failed]
    if not installed(Runtime.OPENVINO):
        lines.append("the CPU is used best by OpenVINO; run: pip install openvino")
    if cache is not None:
        lines.append(f"nothing is kept between starts: {cache}; name another folder with --cache")
    return lines


def _of_cards(one: Exported, question: Question, machine: Machine) -> str | None:
    """What to run so that a card serves this model with an engine built for it, None where one does."""
    if any(engine.fits for engine in one.engines):
        return None
    if one.engines:
        best = one.engines[0]
        run = f"; run: {best.remedy}" if best.remedy else ""
        return f"no engine of {one.name} fits; {best.name}: {best.reason}{run}"
    source = Source(one.name, question.artifacts, "")
    asked = question.options.precision
    if asked is Precision.BF16:
        return None
    return source.nothing_built(machine.best_flavour, machine, asked)
