"""Opens engines that were built for a card: of those in the artifact the best that fits and whose answers are right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.artifact.artifact import GRAPH, Artifact
from models.artifact.engine_plan import EnginePlan, Flavour
from models.artifact.reference import REFERENCE
from service.common.gpus import Card
from service.common.types import Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError, out_of_memory
from service.engines.selection.compatibility import Fit, Machine, Source, misfits
from service.engines.selection.opening import open_checked
from service.engines.selection.parity_gate import Gate, Subject
from service.engines.selection.result import Choice, Opened
from service.engines.tensorrt.packages import INSTALL

FLAVOURS = {Runtime.TENSORRT: Flavour.TENSORRT, Runtime.TENSORRT_RTX: Flavour.TENSORRT_RTX}
"""The runtimes that run plans."""

_UNKNOWN = "unknown"

BuildOn = Callable[[EnginePlan, Card], Engine]
"""Makes the engine of a plan on a card."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What engines are opened on: the machine, the folder for reports of checks, the largest batch asked for."""

    machine: Machine
    cache: Path
    max_batch: int


def open_built(artifact: Artifact, runtime: Runtime, fits: tuple[Fit, ...], bench: Bench, build: BuildOn) -> Opened:
    """The best plan of `runtime` among `fits` that `build` makes run, and that passes the check on the card.

    Raises EngineUnavailableError where none does, with what is wrong with each; caused by a lack of memory where that
    is one of them.
    """
    mine = [fit for fit in fits if fit.plan.record.flavour is FLAVOURS[runtime]]
    failed: list[str] = []
    errors: list[EngineUnavailableError] = []
    for fit in mine:
        if not fit.fits:
            continue
        card = _card(fit)
        gate = gate_of_plan(artifact, runtime, fit, bench)
        try:
            engine, report = open_checked(artifact, runtime, partial(build, fit.plan, card), gate)
        except EngineUnavailableError as error:
            failed.append(f"{fit.plan.record.stem}: {error}")
            errors.append(error)
            continue
        return Opened(engine, Choice(tuple(failed), parity=(report,)))
    reasons = "; ".join([*failed, *misfits(mine)])
    raise EngineUnavailableError(reasons) from next(filter(out_of_memory, errors), None)


def _card(fit: Fit) -> Card:
    """Of the cards that it fits the one with the most free memory."""
    return max(fit.cards, key=lambda one: one.free_bytes)


def gate_of_plan(artifact: Artifact, runtime: Runtime, fit: Fit, bench: Bench) -> Gate:
    """The check of a plan that fits, on the card that it would be opened on."""
    record = fit.plan.record
    subject = Subject(
        engine_sha256=record.sha256,
        reference_sha256=artifact.manifest.files.get(REFERENCE, ""),
        runtime=runtime,
        runtime_version=record.version,
        precision=Precision(record.precision),
        card=_card(fit).name,
        driver=bench.machine.driver or _UNKNOWN,
    )
    return Gate.of(artifact, subject, min(bench.max_batch, record.profile.largest), bench.cache)


def gate_of_graph(artifact: Artifact, runtime: Runtime, version: str, bench: Bench) -> Gate:
    """The check of a runtime that reads model.onnx itself, in f32, on the first card of the bench.

    Its report is kept only where it is known which card that is.
    """
    card = next(iter(bench.machine.cards.found), None)
    subject = Subject(
        engine_sha256=artifact.manifest.files.get(GRAPH, ""),
        reference_sha256=artifact.manifest.files.get(REFERENCE, ""),
        runtime=runtime,
        runtime_version=version,
        precision=Precision.F32,
        card=card.name if card else "",
        driver=bench.machine.driver or _UNKNOWN,
    )
    return Gate.of(artifact, subject, bench.max_batch, bench.cache if card else None)


def best_flavour(machine: Machine) -> Flavour:
    """The flavour to advise: TensorRT itself, which is faster, unless only the other is installed."""
    if Flavour.TENSORRT not in machine.versions and Flavour.TENSORRT_RTX in machine.versions:
        return Flavour.TENSORRT_RTX
    return Flavour.TENSORRT


def nothing_built(flavour: Flavour, source: Source, machine: Machine, asked: Precision) -> str:
    """What to say where an artifact has no plan of `flavour`: which command builds one."""
    precision = Precision.FP16 if asked is Precision.AUTO else asked
    install = "" if flavour in machine.versions else f"{INSTALL[flavour]} and then "
    return f"no {flavour} engine is built for {source.name}; run: {install}{source.build(flavour, precision)}"


def nothing_runs(source: Source, machine: Machine, asked: Precision) -> str:
    """What to say where nothing was even tried."""
    if asked in (Precision.FP16, Precision.INT8):
        advice = nothing_built(best_flavour(machine), source, machine, asked)
        return f"{asked} needs an NVIDIA card and an engine built for it; {advice}"
    return f"no runtime for --precision {asked} is installed; run: pip install openvino"
