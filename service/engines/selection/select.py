"""Lists the engines that may serve an artifact on this machine, the preferred first, with reasons. Opens none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from models.artifact.artifact import GRAPH, Artifact, ParityReport
from models.artifact.engine_plan import Flavour
from models.artifact.files import expand_home
from models.artifact.quantized import QuantizedGraph, QuantizedGraphError, read_quantized
from models.artifact.reference import REFERENCE
from service.common.gpus import Card
from service.common.types import CACHE, Layout, Precision, Runtime
from service.engines.base import INSTALL, EngineUnavailableError
from service.engines.selection.compatibility import NO_MACHINE, Fit, Machine, Source, misfits, survey
from service.engines.selection.cpu_layout import (
    DEFAULT_MAX_BATCH,
    NOT_TUNED,
    TUNABLE,
    Tuned,
    at_most,
    default_layout,
    read_tuned,
)
from service.engines.selection.int8 import reason_against_int8
from service.engines.selection.parity import CheckedEngine, ParityCheck
from service.engines.selection.precision import check_computes, choose_precision, computes, is_checked_on_the_card
from service.engines.tensorrt.packages import is_installed

BUILT = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)
"""The runtimes of engines that are built for a GPU. Each has the name of its flavour of plans."""
ON_CARDS = (*BUILT, Runtime.ONNXRUNTIME_CUDA)
ORDER = (*ON_CARDS, Runtime.OPENVINO, Runtime.ONNXRUNTIME)
"""The order of preference of `auto`. torch is the reference and serves only if asked for."""

_MODULE = {Runtime.ONNXRUNTIME_CUDA: "onnxruntime"}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The requested properties of an engine.

    `cpus` are for all slots together. `max_batch` 0 and `layout` None take the tuned values, or else the default;
    `layout` applies to the CPU alone. `card` is the GPU to use, None for any. `cache` is the folder for measurements of
    this machine. `among` are the runtimes that `auto` tries, best first.
    """

    runtime: Runtime = Runtime.AUTO
    precision: Precision = Precision.AUTO
    cpus: int = 1
    max_batch: int = 0
    card: Card | None = None
    cache: Path = field(default_factory=partial(expand_home, CACHE))
    among: tuple[Runtime, ...] = ORDER
    layout: Layout | None = None

    @property
    def on_cpu(self) -> Layout:
        layout = self.layout or default_layout(self.cpus)
        return replace(layout, max_batch=self.max_batch) if self.max_batch else layout

    @property
    def batch_on_cards(self) -> int:
        return self.max_batch or DEFAULT_MAX_BATCH


def installed(runtime: Runtime) -> bool:
    """Whether the packages of `runtime` can be imported. It imports only ONNX Runtime, to ask it for CUDA."""
    if runtime in BUILT:
        return is_installed(Flavour(runtime))
    if find_spec(_MODULE.get(runtime, runtime.value)) is None:
        return False
    if runtime is Runtime.ONNXRUNTIME_CUDA:
        from service.engines.onnxruntime import has_cuda

        return has_cuda()
    return True


def check_possible(runtime: Runtime, asked: Precision) -> None:
    """Raise EngineUnavailableError if `runtime` is not installed or cannot compute in `asked`."""
    if not installed(runtime):
        raise EngineUnavailableError(f"the runtime {runtime} is not installed; run: {INSTALL[runtime]}")
    check_computes(runtime, asked)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One engine that may serve an artifact.

    `reason` says why it cannot, and is empty if nothing is known against it. `doubt` is a reason that only opening the
    engine can confirm. `layout` is for an engine on the CPU, `fit` the plan of an engine built for a GPU. `check` is
    the parity check that an engine on a GPU must pass, None if the export has made it. `report` is the result of an
    earlier load.
    """

    runtime: Runtime
    precision: Precision
    reason: str = ""
    doubt: str = ""
    layout: Layout | None = None
    fit: Fit | None = None
    check: ParityCheck | None = None
    report: ParityReport | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The engines that may serve one artifact on one machine.

    `fits` are the plans in the artifact, the best first, and `quantized` its int8 graph for CPUs. `damage` names the
    records that cannot be read.
    """

    artifact: Artifact
    options: EngineOptions
    machine: Machine
    fits: tuple[Fit, ...]
    damage: tuple[str, ...]
    tuned: Tuned
    quantized: QuantizedGraph | None = None

    @classmethod
    def of(cls, artifact: Artifact, options: EngineOptions, machine: Machine) -> "Selection":
        """Read the plans and the tuning record of the artifact. Plans are not read for NO_MACHINE."""
        fits, damage = ((), ()) if machine is NO_MACHINE else survey(artifact, machine, options.precision)
        tuned = NOT_TUNED
        if options.layout is None and options.runtime in (Runtime.AUTO, *TUNABLE):
            tuned = read_tuned(artifact, options.cpus)
        quantized = None
        try:
            quantized = read_quantized(artifact)
        except QuantizedGraphError as error:
            damage = (*damage, str(error))
        return cls(artifact, options, machine, fits, damage, tuned, quantized)

    @property
    def batch_on_cards(self) -> int:
        return at_most(self.options.batch_on_cards, self.artifact)

    def attempts(self) -> Iterator[Attempt]:
        """The attempts for the request, with `auto` all runtimes that can compute in the precision, preferred first.

        Attempts with one runtime follow each other. They are made one by one, because checking a runtime may import it.
        """
        asked, runtime = self.options.precision, self.options.runtime
        if runtime is Runtime.AUTO:
            for one in self.tuned.order(self.options.among, asked):
                if computes(one, asked) and (one in BUILT or installed(one)):
                    yield from self._attempts_on(one)
            return
        try:
            check_possible(runtime, asked)
        except EngineUnavailableError as error:
            yield Attempt(runtime, asked, str(error))
            return
        if runtime in BUILT and not self._fits_of(runtime):
            advice = Source.of(self.artifact).nothing_built(Flavour(runtime), self.machine, asked)
            yield Attempt(runtime, asked, "; ".join([*self.damage, advice]))
        yield from self._attempts_on(runtime)

    def expected(self) -> tuple[Attempt | None, list[Attempt]]:
        """The attempt that should succeed, or None, and the attempts before it."""
        passed: list[Attempt] = []
        for attempt in self.attempts():
            if not (attempt.reason or attempt.doubt):
                return attempt, passed
            passed.append(attempt)
        return None, passed

    def remarks(self) -> list[str]:
        """Why `auto` uses no GPU, if no attempt gives the reason: records cannot be read, no GPU, or nothing built."""
        remarks, cards, asked = list(self.damage), self.machine.cards, self.options.precision
        if self.fits or not computes(Runtime.TENSORRT, asked):
            return remarks
        if not cards.found and self.machine.expects_cards:
            remarks.append(f"no NVIDIA GPU can be used here: {cards.reason}")
        if cards.found and not self.damage:
            remarks.append(self._nothing_built())
        return remarks

    def refusal(self, reasons: Sequence[str]) -> str:
        """The error message if every attempt fails, with the reason of each."""
        asked, auto = self.options.precision, self.options.runtime is Runtime.AUTO
        damage = [one for one in self.damage if auto and not any(one in reason for reason in reasons)]
        told = [*damage, *reasons]
        of_cards = auto and asked in (Precision.FP16, Precision.INT8) and not self.fits
        if of_cards and (self.machine.cards.found or not told):
            told.append(f"{asked} on an NVIDIA GPU needs an engine built for it; {self._nothing_built()}")
        return "; ".join(told) or f"no runtime for --precision {asked} is installed; run: {INSTALL[Runtime.OPENVINO]}"

    def _nothing_built(self) -> str:
        machine = self.machine
        return Source.of(self.artifact).nothing_built(machine.best_flavour, machine, self.options.precision)

    def _fits_of(self, runtime: Runtime) -> list[Fit]:
        return [fit for fit in self.fits if fit.plan.record.flavour == runtime.value]

    def _attempts_on(self, runtime: Runtime) -> Iterator[Attempt]:
        if runtime not in BUILT:
            if runtime is Runtime.OPENVINO and self.options.precision is Precision.AUTO:
                yield from self._in_int8()
            yield self._with_graph(runtime, self.options.precision)
            return
        fits = self._fits_of(runtime)
        yield from (self._with_plan(runtime, fit) for fit in fits if fit.fits)
        yield from (Attempt(runtime, self.options.precision, sentence) for sentence in misfits(fits))

    def _with_plan(self, runtime: Runtime, fit: Fit) -> Attempt:
        record = fit.plan.record
        precision, rows = Precision(record.precision), min(self.batch_on_cards, record.profile.largest)
        check = self._check((record.sha256, runtime, record.version), precision, fit.card, rows)
        report = check.stored()
        failure = check.failure(report)
        reason = f"{record.stem}: {failure}" if failure else ""
        return Attempt(runtime, precision, reason, fit=fit, check=check, report=report)

    def _in_int8(self) -> Iterator[Attempt]:
        """The attempt in int8 if the artifact has an int8 graph, with the reason if `auto` does not take it."""
        if self.quantized is None:
            return
        if reason := reason_against_int8(self.artifact, self.quantized.record, self.tuned, self.options.cpus):
            yield Attempt(Runtime.OPENVINO, Precision.INT8, f"not in int8: {reason}")
        else:
            yield self._with_graph(Runtime.OPENVINO, Precision.INT8)

    def _with_graph(self, runtime: Runtime, asked: Precision) -> Attempt:
        options = self.options
        try:
            precision = choose_precision(self.artifact, runtime, asked)
        except EngineUnavailableError as error:
            return Attempt(runtime, asked, str(error))
        if runtime is Runtime.ONNXRUNTIME_CUDA:
            return self._with_graph_on_card(runtime, precision)
        precision, layout = self.tuned.choose(runtime, asked, precision)
        own = default_layout(options.cpus, 1) if runtime is Runtime.TORCH else None  # it runs one batch at a time
        layout = replace(options, layout=layout or options.layout or own).on_cpu
        layout = replace(layout, max_batch=at_most(layout.max_batch, self.artifact))
        return Attempt(runtime, precision, layout=layout)

    def _with_graph_on_card(self, runtime: Runtime, precision: Precision) -> Attempt:
        cards = self.machine.cards
        doubt = "" if cards.found else f"{runtime} finds no GPU: {cards.reason}"
        if not is_checked_on_the_card(self.artifact, runtime):
            return Attempt(runtime, precision, doubt=doubt)
        from service.engines.onnxruntime import version

        graph = self.artifact.manifest.files.get(GRAPH, "")
        check = self._check((graph, runtime, version()), precision, next(iter(cards.found), None), self.batch_on_cards)
        report = check.stored()
        return Attempt(runtime, precision, check.failure(report), doubt, check=check, report=report)

    def _check(
        self, engine: tuple[str, Runtime, str], precision: Precision, card: Card | None, rows: int
    ) -> ParityCheck:
        """The check of an engine, by its sha256, runtime and version. Nothing is kept if the GPU is not known."""
        subject = CheckedEngine(
            engine_sha256=engine[0],
            reference_sha256=self.artifact.manifest.files.get(REFERENCE, ""),
            runtime=engine[1],
            runtime_version=engine[2],
            precision=precision,
            card=card.name if card else "",
            driver=self.machine.driver or "unknown",
        )
        return ParityCheck.of(self.artifact, subject, rows, self.options.cache if card else None)
