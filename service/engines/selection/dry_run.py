"""Which runtime would serve an artifact here, from what is known without building anything."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.artifact.artifact import Artifact
from service.common.types import Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.compatibility import Fit, Machine, misfits
from service.engines.selection.cpu_layout import read_tuned
from service.engines.selection.opening import check_known
from service.engines.selection.parity_gate import Gate
from service.engines.selection.prebuilt import FLAVOURS, Bench, gate_of_graph, gate_of_plan, nothing_built, nothing_runs
from service.engines.selection.precision import choose_precision, computes, is_checked_on_the_card
from service.engines.selection.select import ORDER, EngineOptions, check_possible, installed, source_of


@dataclass(frozen=True, slots=True)
class Expectation:
    """The runtime that would be tried first, and what would come before it and is known not to answer rightly here."""

    runtime: Runtime
    failed: tuple[str, ...]


def expected(artifact: Artifact, options: EngineOptions, machine: Machine, fits: Sequence[Fit]) -> Expectation:
    """What `open_engine` would open, unless it finds out something new; the artifact's labels are not looked at.

    Raises EngineUnavailableError, with what is wrong with each runtime, where nothing is left.
    """
    asked, source = options.precision, source_of(artifact)
    bench = Bench(machine, options.cache, options.batch_on_cards)
    if options.runtime is not Runtime.AUTO:
        check_possible(options.runtime, asked)
    refused: list[str] = []
    failed: list[str] = []
    runtimes: Sequence[Runtime] = (options.runtime,)
    if options.runtime is Runtime.AUTO:
        runtimes = read_tuned(artifact, options.cache, options.cpus, options.runtime, asked).order(ORDER, asked)
    for runtime in runtimes:
        if (flavour := FLAVOURS.get(runtime)) is not None:
            mine = [fit for fit in fits if fit.plan.record.flavour is flavour]
            for fit in filter(lambda one: one.fits, mine):
                if (why := _known_failure(gate_of_plan(artifact, runtime, fit, bench))) is None:
                    return Expectation(runtime, tuple(failed))
                failed.append(f"{fit.plan.record.stem}: {why}")
            if not mine and options.runtime is runtime:
                refused.append(nothing_built(flavour, source, machine, asked))
            refused += misfits(mine)
        elif computes(runtime, asked) and installed(runtime):
            if (why := _of_graph(artifact, runtime, options, bench)) is None:
                return Expectation(runtime, tuple(failed))
            refused.append(why)
    raise EngineUnavailableError("; ".join([*failed, *refused]) or nothing_runs(source, machine, asked))


def _of_graph(artifact: Artifact, runtime: Runtime, options: EngineOptions, bench: Bench) -> str | None:
    """Why a runtime that reads model.onnx would not serve it; None where it would."""
    try:
        choose_precision(artifact, runtime, options.precision)
    except EngineUnavailableError as error:
        return str(error)
    if runtime is Runtime.ONNXRUNTIME_CUDA and not bench.machine.cards.found:
        return f"{runtime} finds no card: {bench.machine.cards.reason}"
    if not is_checked_on_the_card(artifact, runtime):
        return None
    from service.engines.onnxruntime import version

    why = _known_failure(gate_of_graph(artifact, runtime, version(), bench))
    return None if why is None else f"{runtime}: {why}"


def _known_failure(gate: Gate) -> str | None:
    try:
        check_known(gate)
    except EngineUnavailableError as error:
        return str(error)
    return None
