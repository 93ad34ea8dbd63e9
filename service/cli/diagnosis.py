"""Finds out whether `serve` can start on this machine, which engines it would use, and what would improve it.

It changes nothing, opens no engine, and does not check the sha256 of files: loading does that.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact.artifact import Artifact, ArtifactError, exported_names, newest_whole, read_manifest
from models.artifact.engine_plan import Flavour
from models.catalog import CATALOG, UnknownModelError
from service.common.cpus import Host, cpu_quota, host
from service.common.model_info import BuiltEngine
from service.common.packages import package_version
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.base import INSTALL
from service.engines.selection.compatibility import Machine, Source, this_machine
from service.engines.selection.select import EngineOptions, Selection, installed
from service.repository.model_info import built_engine

_PACKAGES = {
    "ONNX Runtime": (("onnxruntime-gpu", "onnxruntime"), "pip install '.[cpu]' or, for GPUs, '.[gpu]'"),
    "OpenVINO": (("openvino",), "pip install openvino"),
    "PyTorch": (("torch",), "pip install '.[export]' (only exports need it)"),
    "cuda-bindings": (("cuda-bindings",), "pip install '.[gpu]'"),
}
_FLAVOURS = {Flavour.TENSORRT: "TensorRT", Flavour.TENSORRT_RTX: "TensorRT for RTX"}


@dataclass(frozen=True, slots=True)
class Package:
    """A package with its version, None if it is not installed, and the command that installs it.

    `details` are the providers of ONNX Runtime.
    """

    name: str
    version: str | None
    install: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiagnosedModel:
    """An exported model with the runtime that would serve it, or the reason (`refusal`) why none would.

    `damage` says why it cannot be loaded. `unreadable` are records of built engines, `failed` names fitting engines
    that are known to give wrong answers on this machine.
    """

    name: str
    version: int | None = None
    weights: str | None = None
    engines: tuple[BuiltEngine, ...] = ()
    runtime: Runtime | None = None
    refusal: str | None = None
    damage: str | None = None
    unreadable: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port to listen on. `problem` says why that is not possible."""

    number: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole diagnosis. `models` would be loaded at start; `broken` lists what keeps `serve` from starting."""

    models: tuple[str, ...]
    machine: Machine
    host: Host
    packages: tuple[Package, ...]
    ports: tuple[Port, ...]
    cache_problem: str | None
    artifacts: tuple[DiagnosedModel, ...]
    broken: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose(
    settings: Settings, look: Callable[[], Machine] = this_machine, measure: Callable[[], Host] = host
) -> Diagnosis:
    """Diagnose these settings. `look` finds GPUs and versions, `measure` CPUs and memory."""
    machine = look()
    models = tuple(CATALOG.canonical(name) for name in settings.models)
    options = EngineOptions(
        settings.runtime, settings.precision, settings.cpus or cpu_quota(), cache=settings.cache_folder
    )
    exported = {name: _exported(name, settings, options, machine) for name in exported_names(settings.artifacts)}
    ports = tuple(Port(number, _taken(settings.host, number)) for number in (settings.port, settings.grpc_port))
    cache = _unwritable(settings.cache_folder)
    return Diagnosis(
        models=models,
        machine=machine,
        host=measure(),
        packages=_packages(machine),
        ports=ports,
        cache_problem=cache,
        artifacts=tuple(exported.values()),
        broken=(*_broken(models, exported, settings), *_broken_ports(ports, settings.host)),
        advice=tuple(dict.fromkeys(_advice(models, exported, settings, machine, cache))),
    )


def _exported(name: str, settings: Settings, options: EngineOptions, machine: Machine) -> DiagnosedModel:
    try:
        (number, manifest), newer = newest_whole(settings.artifacts, name, read_manifest)
    except ArtifactError as error:
        return DiagnosedModel(name, damage=str(error))
    folder = settings.artifacts / name / str(number)
    missing = [file for file in manifest.files if not (folder / file).is_file()]
    selection = Selection.of(Artifact(folder, number, manifest, ()), options, machine)
    expected, passed = selection.expected()
    weights = manifest.weights
    return DiagnosedModel(
        name,
        number,
        weights=weights.source if weights.source == weights.name else f"{weights.source}: {weights.name}",
        engines=tuple(map(built_engine, selection.fits)),
        runtime=expected.runtime if expected else None,
        refusal=None if expected else selection.refusal([attempt.reason or attempt.doubt for attempt in passed]),
        damage=f"{folder} lacks {', '.join(missing)}; export it again" if missing else None,
        unreadable=(*newer, *selection.damage),
        failed=tuple(attempt.reason for attempt in passed if attempt.fit) if expected else (),
    )


def _packages(machine: Machine) -> tuple[Package, ...]:
    flavours = [Package(name, machine.versions.get(one), INSTALL[one]) for one, name in _FLAVOURS.items()]
    others = [Package(name, package_version(*names), install) for name, (names, install) in _PACKAGES.items()]
    return tuple(
        replace(one, details=_providers()) if one.name == "ONNX Runtime" and one.version else one
        for one in (*flavours, *others)
    )


def _providers() -> tuple[str, ...]:
    from service.engines.onnxruntime import providers

    return tuple(name.removesuffix("ExecutionProvider") for name in providers())


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


def _broken(models: Sequence[str], exported: Mapping[str, DiagnosedModel], settings: Settings) -> Iterator[str]:
    for name in models:
        if (one := exported.get(name)) is not None:
            if one.damage or one.refusal:
                yield one.damage or f"nothing runs {name}: {one.refusal}"
        elif name in CATALOG:
            yield f"{name} is not exported; run: topfive export {name} --artifacts {settings.artifacts}"
        else:
            yield str(UnknownModelError(name, {*CATALOG.names(), *exported}))


def _broken_ports(ports: Sequence[Port], host: str) -> Iterator[str]:
    yield from (f"port {one.number} of {host}: {one.problem}" for one in ports if one.problem)
    rest, rpc = ports
    if rest.number and rest.number == rpc.number:
        yield f"port {rest.number} is asked for twice; choose another --port or --grpc-port"


def _advice(
    models: Sequence[str],
    exported: Mapping[str, DiagnosedModel],
    settings: Settings,
    machine: Machine,
    cache_problem: str | None,
) -> Iterator[str]:
    """Suggestions, the most important first. GPUs are left out if the machine is not set up for them."""
    cards = machine.cards
    if machine.driver is not None and not cards.found:
        yield f"there is an NVIDIA driver and no GPU can be used: {cards.reason}"
    if cards.found:
        if cards.reason:
            yield cards.reason
        wanted = [exported[name] for name in models if name in exported and exported[name].damage is None]
        yield from filter(None, (_for_cards(one, settings, machine) for one in wanted))
        yield from (f"{one.name} on {why}" for one in wanted for why in one.failed)
    if not installed(Runtime.OPENVINO):
        yield "OpenVINO uses the CPU best; run: pip install openvino"
    if cache_problem is not None:
        yield f"nothing is kept between starts: {cache_problem}; name another folder with --cache"


def _for_cards(model: DiagnosedModel, settings: Settings, machine: Machine) -> str | None:
    """The command by which an engine built for a GPU would serve this model, or None if one does."""
    if any(engine.fits for engine in model.engines):
        return None
    if model.engines:
        best = model.engines[0]
        run = f"; run: {best.remedy}" if best.remedy else ""
        return f"no engine of {model.name} fits; {best.name}: {best.reason}{run}"
    if settings.precision is Precision.BF16:
        return None
    return Source(model.name, settings.artifacts, "").nothing_built(machine.best_flavour, machine, settings.precision)
