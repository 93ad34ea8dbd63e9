"""Opens an engine for an artifact: the requested one, or with `auto` the first attempt that succeeds."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby

from models.artifact.artifact import Artifact, ParityReport
from models.artifact.engine_plan import EnginePlan, PlanError
from models.artifact.quantized import QuantizationRecord
from service.common.gpus import Card
from service.common.types import Layout, Precision, Runtime
from service.engines.base import CardLostError, Engine, EngineUnavailableError, out_of_memory
from service.engines.selection.compatibility import NO_MACHINE, Fit, Machine, this_machine
from service.engines.selection.int8 import int8_graph
from service.engines.selection.parity import reference_of
from service.engines.selection.select import BUILT, Attempt, EngineOptions, Selection

_ON_CPU = (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH)
_CARD_SLOTS = 2  # while one batch is computed, the next is copied

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Why an engine was chosen. `passed_over`: preferred engines, why each does not run, and what serves instead.

    `fits` are the plans in the artifact, `parity` the reports of checks on this machine, `layout` the layout of an
    engine on the CPU. `quantized` is the record of the int8 graph in the artifact.
    """

    passed_over: tuple[str, ...] = ()
    fits: tuple[Fit, ...] = ()
    parity: tuple[ParityReport, ...] = ()
    layout: Layout | None = None
    quantized: QuantizationRecord | None = None


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """A warm engine, and why it was chosen."""

    engine: Engine
    choice: Choice = field(default_factory=Choice)


OpenEngine = Callable[[Artifact], OpenedEngine]
"""Opens an engine for an artifact, as `open_engine` does for given options."""

BuildPlan = Callable[[EnginePlan, Card, Artifact, EngineOptions], Engine]


def build_plan_engine(plan: EnginePlan, card: Card, artifact: Artifact, options: EngineOptions) -> Engine:
    """The engine of a plan on `card`, not warmed up."""
    from service.engines.tensorrt.engine import TensorRtEngine

    return TensorRtEngine(
        plan, artifact, card=card, slots=_CARD_SLOTS, max_batch=options.batch_on_cards, cache=options.cache
    )


def build_engine(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
    """The engine of a runtime that reads model.onnx, not warmed up and not checked."""
    layout = options.on_cpu
    slots, threads, max_batch = layout.slots, layout.threads, layout.max_batch
    if runtime is Runtime.OPENVINO:
        from service.engines.openvino import OpenVinoEngine

        graph = int8_graph(artifact) if precision is Precision.INT8 else artifact.graph
        return OpenVinoEngine(artifact, precision, slots=slots, threads=threads, max_batch=max_batch, graph=graph)
    if runtime is Runtime.TORCH:
        from service.engines.torch import TorchEngine

        return TorchEngine(artifact, threads=slots * threads, max_batch=max_batch)
    from service.engines.onnxruntime import OnnxRuntimeEngine

    if runtime is Runtime.ONNXRUNTIME_CUDA:
        slots, max_batch = 1, options.batch_on_cards
    return OnnxRuntimeEngine(artifact, runtime, slots=slots, threads=threads, max_batch=max_batch, card=options.card)


def open_engine(
    artifact: Artifact,
    options: EngineOptions,
    *,
    look: Callable[[], Machine] = this_machine,
    build_plan: BuildPlan = build_plan_engine,
) -> OpenedEngine:
    """Open a warm engine for `artifact`. It never runs more rows at once than the manifest allows.

    `auto` takes the best engine that runs here and passes parity. The log and the choice say which were passed over and
    why. Raises EngineUnavailableError if the requested engine cannot run, and with `auto` if the named GPU lacks
    memory. `look` finds the machine's GPUs and versions, `build_plan` makes the engine of a plan.
    """
    machine = NO_MACHINE if options.runtime in _ON_CPU else look().only(options.card)
    selection = Selection.of(artifact, options, machine)
    for note in selection.tuned.notes:
        log.warning("%s", note)
    name, level = artifact.manifest.name, logging.WARNING if machine.expects_cards else logging.INFO
    notes = [(level, remark) for remark in selection.remarks()] if options.runtime is Runtime.AUTO else []
    reasons: list[str] = []
    for runtime, attempts in groupby(selection.attempts(), key=lambda attempt: attempt.runtime):
        opened, failed = _open_first(selection, attempts, build_plan)
        if opened is not None:
            notes += [(logging.WARNING, f"{name} on {runtime}: {reason}") for reason in failed]
            return _with_notes(opened, selection, notes)
        reasons += failed
        text = f"{runtime} does not run {name}: {'; '.join(failed)}"
        notes.append((level if runtime in BUILT else logging.WARNING, text))
    raise EngineUnavailableError(selection.refusal(reasons))


def _open_first(
    selection: Selection, attempts: Iterable[Attempt], build_plan: BuildPlan
) -> tuple[OpenedEngine | None, list[str]]:
    """The first attempt with one runtime that succeeds, or None, and the errors of those before it.

    Raises EngineUnavailableError if a requested runtime fails, and if the named GPU has too little memory: the caller
    may free memory there and try again.
    """
    options = selection.options
    failed: list[str] = []
    errors: list[EngineUnavailableError] = []
    for attempt in attempts:
        if attempt.reason:
            failed.append(attempt.reason)
            continue
        try:
            return _open(selection, attempt, build_plan), failed
        except EngineUnavailableError as error:
            failed.append(f"{attempt.fit.plan.record.stem}: {error}" if attempt.fit else str(error))
            errors.append(error)
    full = next(filter(out_of_memory, errors), None)
    if (errors and options.runtime is not Runtime.AUTO) or (full and options.card):
        raise EngineUnavailableError("; ".join(failed)) from full or errors[-1]
    return None, failed


def _open(selection: Selection, attempt: Attempt, build_plan: BuildPlan) -> OpenedEngine:
    """Build the engine, warm it up, and check parity if no report exists. On an error the engine is closed."""
    artifact, check, report = selection.artifact, attempt.check, attempt.report
    reference = reference_of(artifact) if check is not None and report is None else None
    try:
        engine = _build(selection, attempt, build_plan)
    except PlanError as error:
        raise EngineUnavailableError(str(error)) from error
    step = "on its first batches"
    try:
        engine.warm_up()
        if check is not None and reference is not None:
            step = "while its answers are checked"
            report = check.run(engine, reference)
            if failure := check.failure(report):
                raise EngineUnavailableError(failure)
    except (CardLostError, EngineUnavailableError):
        engine.close()
        raise
    except Exception as error:  # a runtime's own exceptions have no common base
        engine.close()
        raise EngineUnavailableError(f"{attempt.runtime} fails {step}: {error}") from error
    return OpenedEngine(engine, Choice(parity=(report,) if report else (), layout=attempt.layout))


def _build(selection: Selection, attempt: Attempt, build_plan: BuildPlan) -> Engine:
    artifact, layout = selection.artifact, attempt.layout
    max_batch = layout.max_batch if layout else selection.batch_on_cards
    options = replace(selection.options, layout=layout, max_batch=max_batch)
    if attempt.fit is not None:
        return build_plan(attempt.fit.plan, attempt.fit.card, artifact, options)
    return build_engine(artifact, attempt.runtime, attempt.precision, options)


def _with_notes(opened: OpenedEngine, selection: Selection, notes: list[tuple[int, str]]) -> OpenedEngine:
    """Add to each note which engine serves instead, log it, and put it into the choice."""
    info = opened.engine.describe()
    texts = [f"{note}; {info.runtime} in {info.precision} serves instead" for _, note in notes]
    for (level, _), text in zip(notes, texts, strict=True):
        log.log(level, "%s", text)
    quantized = selection.quantized.record if selection.quantized else None
    choice = replace(opened.choice, passed_over=tuple(texts), fits=selection.fits, quantized=quantized)
    return replace(opened, choice=choice)
