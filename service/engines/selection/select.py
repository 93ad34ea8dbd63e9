"""Which engine runs an artifact on this machine: what was asked for, or with `auto` the best that fits."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from models.artifact.artifact import Artifact
from models.artifact.engine_plan import EnginePlan
from models.artifact.files import expand_home
from service.common.gpus import Card
from service.common.types import CACHE, Layout, Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError, out_of_memory
from service.engines.selection.compatibility import NO_MACHINE, Fit, Machine, Source, survey, this_machine
from service.engines.selection.cpu_layout import (
    DEFAULT_MAX_BATCH,
    NOT_TUNED,
    TUNABLE,
    Tuned,
    at_most,
    default_layout,
    read_tuned,
)
from service.engines.selection.opening import open_checked, open_unchecked
from service.engines.selection.prebuilt import (
    FLAVOURS,
    Bench,
    BuildOn,
    best_flavour,
    gate_of_graph,
    nothing_built,
    nothing_runs,
    open_built,
)
from service.engines.selection.precision import check_computes, choose_precision, computes, is_checked_on_the_card
from service.engines.selection.result import Choice, Opened
from service.engines.tensorrt.packages import is_installed

ORDER = (
    Runtime.TENSORRT,
    Runtime.TENSORRT_RTX,
    Runtime.ONNXRUNTIME_CUDA,
    Runtime.OPENVINO,
    Runtime.ONNXRUNTIME,
)
"""What `auto` prefers, best first; torch is the reference and serves only where it is asked for."""

_INSTALL = {
    Runtime.TENSORRT: ".[tensorrt]",
    Runtime.TENSORRT_RTX: ".[tensorrt-rtx]",
    Runtime.OPENVINO: "openvino",
    Runtime.ONNXRUNTIME: ".[cpu]",
    Runtime.ONNXRUNTIME_CUDA: ".[gpu]",
    Runtime.TORCH: ".[export]",
}
_ON_CPU = (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH)
_MODULE = {Runtime.ONNXRUNTIME_CUDA: "onnxruntime"}
_CARD_SLOTS = 2  # while one batch is computed, the next is copied

log = logging.getLogger(__name__)

BuildPlan = Callable[[EnginePlan, Card, Artifact, "EngineOptions"], Engine]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user asked for, the CPUs there are for all slots together, and the card to use; None for the first.

    `cache` is the folder for what this machine finds out, `among` are the runtimes that `auto` tries, best first.
    `max_batch` 0 takes what was tuned or is the default; `layout` None likewise, and holds for the CPU alone.
    `keep_compiled` keeps graphs that OpenVINO compiled in `cache`.
    """

    runtime: Runtime = Runtime.AUTO
    precision: Precision = Precision.AUTO
    cpus: int = 1
    max_batch: int = 0
    card: Card | None = None
    cache: Path = field(default_factory=partial(expand_home, CACHE))
    among: tuple[Runtime, ...] = ORDER
    layout: Layout | None = None
    keep_compiled: bool = False

    @property
    def on_cpu(self) -> Layout:
        """How an engine on the CPU is laid out."""
        layout = self.layout or default_layout(self.cpus)
        return replace(layout, max_batch=self.max_batch) if self.max_batch else layout

    @property
    def batch_on_cards(self) -> int:
        """The largest batch on a card."""
        return self.max_batch or DEFAULT_MAX_BATCH


def installed(runtime: Runtime) -> bool:
    """Whether the packages of `runtime` can be imported; nothing heavy is."""
    if (flavour := FLAVOURS.get(runtime)) is not None:
        return is_installed(flavour)
    if find_spec(_MODULE.get(runtime, runtime.value)) is None:
        return False
    if runtime is Runtime.ONNXRUNTIME_CUDA:
        from service.engines.onnxruntime import has_cuda

        return has_cuda()
    return True


def build_plan_engine(plan: EnginePlan, card: Card, artifact: Artifact, options: EngineOptions) -> Engine:
    """The engine of a plan on `card`, with nothing chosen and nothing warmed up."""
    from service.engines.tensorrt.engine import TensorRtEngine

    return TensorRtEngine(
        plan, artifact, card=card, slots=_CARD_SLOTS, max_batch=options.batch_on_cards, cache=options.cache
    )


def check_possible(runtime: Runtime, asked: Precision) -> None:
    """Raise EngineUnavailableError where the packages are not there, or compute otherwise than is asked for."""
    if not installed(runtime):
        raise EngineUnavailableError(f"the runtime {runtime} is not installed; run: pip install '{_INSTALL[runtime]}'")
    check_computes(runtime, asked)


def source_of(artifact: Artifact) -> Source:
    """What plans in it are judged for."""
    return Source.of(artifact.folder.parent.parent, artifact.manifest)


@dataclass(frozen=True, slots=True)
class _Case:
    """One artifact on one machine: what is asked for, the plans in it, and what is wrong with records of others."""

    artifact: Artifact
    options: EngineOptions
    source: Source
    fits: tuple[Fit, ...]
    damage: list[str]
    bench: Bench
    build: BuildOn
    tuned: Tuned


@dataclass(frozen=True, slots=True)
class _Note:
    """A line for the log and for who asks about the model."""

    text: str
    level: int


def open_engine(
    artifact: Artifact,
    options: EngineOptions,
    *,
    look: Callable[[], Machine] = this_machine,
    build_plan: BuildPlan = build_plan_engine,
) -> Opened:
    """A warm engine for `artifact` that never runs more rows at once than its manifest allows.

    With `auto` the best that runs here and is known to answer rightly; the log and the choice say what was passed over
    and why. Raises EngineUnavailableError where what was asked for cannot run, and with `auto` where the card that was
    named lacks memory. `look` finds out what machine this is, `build_plan` makes the engine of a plan.
    """
    on_cpu = options.runtime in _ON_CPU
    machine = NO_MACHINE if on_cpu else look().only(options.card)
    source = source_of(artifact)
    fits, damage = ((), []) if on_cpu else survey(artifact.folder, source, machine, options.precision)
    on_cards = replace(options, max_batch=at_most(options.batch_on_cards, artifact))
    bench = Bench(machine, options.cache, on_cards.max_batch)

    def build(plan: EnginePlan, card: Card) -> Engine:
        return build_plan(plan, card, artifact, on_cards)

    tunable = options.layout is None and options.runtime in (Runtime.AUTO, *TUNABLE)
    asked = options.runtime, options.precision
    tuned = read_tuned(artifact, options.cache, options.cpus, *asked) if tunable else NOT_TUNED
    for note in tuned.notes:
        log.warning("%s", note)
    case = _Case(artifact, options, source, fits, damage, bench, build, tuned)
    if options.runtime is Runtime.AUTO:
        return _best(case)
    check_possible(options.runtime, options.precision)
    opened = _open(case, options.runtime)
    return _told(case, opened, [])


def _best(case: _Case) -> Opened:
    """The first of those that `auto` tries that runs; each that should have run and did not is noted."""
    asked, name, machine = case.options.precision, case.artifact.manifest.name, case.bench.machine
    level = logging.WARNING if machine.expects_cards else logging.INFO
    notes = [_Note(text, level) for text in case.damage]
    if machine.expects_cards and not machine.cards.found and not case.fits and computes(Runtime.TENSORRT, asked):
        notes.append(_Note(f"no NVIDIA card can be used here: {machine.cards.reason}", level))
    if machine.cards.found and not case.fits and not case.damage and computes(Runtime.TENSORRT, asked):
        notes.append(_Note(nothing_built(best_flavour(machine), case.source, machine, asked), level))
    refused: list[str] = []
    for runtime in case.tuned.order(case.options.among, asked):
        if not computes(runtime, asked) or not _is_candidate(case, runtime):
            continue
        try:
            opened = _open(case, runtime)
        except EngineUnavailableError as error:
            if case.options.card is not None and out_of_memory(error):  # who chose the card may make room on it
                raise
            refused.append(str(error))
            text = f"{runtime} does not run {name}: {error}"
            notes.append(_Note(text, level if runtime in FLAVOURS else logging.WARNING))
            continue
        return _told(case, opened, notes)
    raise EngineUnavailableError("; ".join([*case.damage, *refused]) or nothing_runs(case.source, machine, asked))


def _is_candidate(case: _Case, runtime: Runtime) -> bool:
    """Whether `auto` tries it: a runtime of plans where there is one for it, another where it is installed."""
    if (flavour := FLAVOURS.get(runtime)) is not None:
        return any(fit.plan.record.flavour is flavour for fit in case.fits)
    return installed(runtime)


def _open(case: _Case, runtime: Runtime) -> Opened:
    artifact, options = case.artifact, case.options
    if (flavour := FLAVOURS.get(runtime)) is not None:
        if not _is_candidate(case, runtime):
            advice = nothing_built(flavour, case.source, case.bench.machine, options.precision)
            raise EngineUnavailableError("; ".join([*case.damage, advice]))
        return open_built(artifact, runtime, case.fits, case.bench, case.build)
    if runtime is Runtime.ONNXRUNTIME_CUDA:
        return _open_graph_on_card(case)
    allowed = choose_precision(artifact, runtime, options.precision)
    precision, layout = case.tuned.choose(runtime, options.precision, allowed)
    own = default_layout(options.cpus, 1) if runtime is Runtime.TORCH else None  # it runs one batch at a time
    layout = replace(options, layout=layout or options.layout or own).on_cpu
    layout = replace(layout, max_batch=at_most(layout.max_batch, artifact))
    options = replace(options, layout=layout, max_batch=layout.max_batch)
    engine = open_unchecked(artifact, runtime, partial(build_engine, artifact, runtime, precision, options))
    return Opened(engine, Choice(layout=layout))


def _open_graph_on_card(case: _Case) -> Opened:
    """ONNX Runtime on a card, checked there where the export could not."""
    artifact, runtime = case.artifact, Runtime.ONNXRUNTIME_CUDA
    precision = choose_precision(artifact, runtime, case.options.precision)
    options = replace(case.options, max_batch=case.bench.max_batch)
    build = partial(build_engine, artifact, runtime, precision, options)
    if not is_checked_on_the_card(artifact, runtime):
        return Opened(open_unchecked(artifact, runtime, build))
    from service.engines.onnxruntime import version

    engine, report = open_checked(artifact, runtime, build, gate_of_graph(artifact, runtime, version(), case.bench))
    return Opened(engine, Choice(parity=(report,)))


def _told(case: _Case, opened: Opened, notes: list[_Note]) -> Opened:
    """The same with each note, in the log and in the choice, saying what serves instead.

    Plans of its own runtime that were tried first and failed are noted too.
    """
    info = opened.engine.describe()
    own = f"{case.artifact.manifest.name} on {info.runtime}"
    notes = [*notes, *(_Note(f"{own}: {text}", logging.WARNING) for text in opened.choice.passed_over)]
    texts = [f"{note.text}; {info.runtime} in {info.precision} serves instead" for note in notes]
    for note, text in zip(notes, texts, strict=True):
        log.log(note.level, "%s", text)
    return Opened(opened.engine, replace(opened.choice, passed_over=tuple(texts), fits=case.fits))


def build_engine(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
    """The engine itself, with nothing chosen and nothing warmed up; the parity gate uses it too."""
    layout = options.on_cpu
    slots, threads, max_batch = layout.slots, layout.threads, layout.max_batch
    if runtime is Runtime.OPENVINO:
        from service.engines.openvino.engine import OpenVinoEngine

        cache = options.cache if options.keep_compiled else None
        return OpenVinoEngine(artifact, precision, slots=slots, threads=threads, max_batch=max_batch, cache=cache)
    if runtime is Runtime.TORCH:
        from service.engines.torch import TorchEngine

        return TorchEngine(artifact, threads=slots * threads, max_batch=max_batch)
    from service.engines.onnxruntime import OnnxRuntimeEngine

    if runtime is Runtime.ONNXRUNTIME_CUDA:
        slots, max_batch = 1, options.batch_on_cards
    return OnnxRuntimeEngine(artifact, runtime, slots=slots, threads=threads, max_batch=max_batch, card=options.card)
