"""Which engine runs an artifact on this machine: what was asked for, or with `auto` the best that fits."""

import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from models.artifact import IMPORTED, Artifact
from service.cards import Card
from service.engines.base import Engine, EngineUnavailableError
from service.types import Precision, Runtime

_INSTALL = {
    Runtime.OPENVINO: "openvino",
    Runtime.ONNXRUNTIME: ".[cpu]",
    Runtime.ONNXRUNTIME_CUDA: ".[gpu]",
    Runtime.TORCH: ".[export]",
}
_MODULE = {Runtime.ONNXRUNTIME_CUDA: "onnxruntime"}
_BF16_RUNTIMES = (Runtime.OPENVINO,)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user asked for, the CPUs there are for all slots together, and the card to use; None for the first."""

    runtime: Runtime = Runtime.AUTO
    precision: Precision = Precision.AUTO
    cpus: int = 1
    max_batch: int = 8
    card: Card | None = None

    @property
    def slots(self) -> int:
        """Batches that run at once on a CPU: a few, because small networks leave many threads idle."""
        return min(4, self.cpus)

    @property
    def threads(self) -> int:
        """Threads of each slot, so that slots times threads never exceeds the quota."""
        return max(1, self.cpus // self.slots)


def installed(runtime: Runtime) -> bool:
    """Whether the packages of `runtime` can be imported; nothing heavy is."""
    if find_spec(_MODULE.get(runtime, runtime.value)) is None:
        return False
    if runtime is Runtime.ONNXRUNTIME_CUDA:
        from service.engines.onnxruntime import has_cuda

        return has_cuda()
    return True


def open_engine(artifact: Artifact, options: EngineOptions) -> Engine:
    """A warm engine for `artifact` that never runs more rows at once than its manifest allows.

    Raises EngineUnavailableError where what was asked for cannot run.
    """
    if (most := artifact.manifest.max_batch) is not None:
        options = replace(options, max_batch=min(options.max_batch, most))
    if options.runtime is not Runtime.AUTO:
        if not installed(options.runtime):
            raise EngineUnavailableError(
                f"the runtime {options.runtime} is not installed; run: pip install '{_INSTALL[options.runtime]}'"
            )
        return _open(artifact, options.runtime, options)
    refused: list[str] = []
    for runtime in (Runtime.ONNXRUNTIME_CUDA, Runtime.OPENVINO, Runtime.ONNXRUNTIME):
        if not installed(runtime) or (options.precision is Precision.BF16 and runtime not in _BF16_RUNTIMES):
            continue
        try:
            return _open(artifact, runtime, options)
        except EngineUnavailableError as error:
            log.warning("%s does not run %s: %s", runtime, artifact.manifest.name, error)
            refused.append(str(error))
    raise EngineUnavailableError(
        "; ".join(refused) or f"no runtime for --precision {options.precision} is installed; run: pip install openvino"
    )


def _open(artifact: Artifact, runtime: Runtime, options: EngineOptions) -> Engine:
    precision = choose_precision(artifact, runtime, options.precision)
    engine = build_engine(artifact, runtime, precision, options)
    try:
        warm_up(engine, artifact.manifest.input.crop)
    except Exception as error:  # a runtime's own exceptions have no common base
        engine.close()
        raise EngineUnavailableError(f"{runtime} fails on its first batches: {error}") from error
    return engine


def choose_precision(artifact: Artifact, runtime: Runtime, asked: Precision) -> Precision:
    """The precision to compute in. bf16 needs a passed parity report of this artifact on this runtime.

    Raises EngineUnavailableError where bf16 was asked for and may not be used, and where the runtime may not be used at
    all: see `_check_f32`.
    """
    _check_f32(artifact, runtime)
    return _precision(artifact, runtime, asked)


def _check_f32(artifact: Artifact, runtime: Runtime) -> None:
    """Raise EngineUnavailableError where this runtime is known to answer wrongly in f32: then in no other precision.

    An export passes on every runtime or is not written. An import needs one runtime that passes: any other serves only
    with a report of its own. The torch engine is not asked: it is the reference of exports, and runs no import.
    """
    manifest, report = artifact.manifest, artifact.parity(runtime, Precision.F32)
    if report is not None and not report.passed:
        raise EngineUnavailableError(
            f"{manifest.name} may not run on {runtime}: its answers differ from the original's "
            f"(max |dp| {report.max_abs_diff:.3g}); see /models/{manifest.name}, and use another --runtime"
        )
    if report is None and manifest.family == IMPORTED and runtime is not Runtime.TORCH:
        raise EngineUnavailableError(
            f"{manifest.name} may not run on {runtime}: when it was imported, it was not checked or did not run there; "
            f"use another --runtime, or import it again where {runtime} runs"
        )


def _precision(artifact: Artifact, runtime: Runtime, asked: Precision) -> Precision:
    if asked is Precision.F32:
        return asked
    if runtime not in _BF16_RUNTIMES:
        if asked is Precision.BF16:
            raise EngineUnavailableError(f"{runtime} computes in f32 here; use --precision f32 or --runtime openvino")
        return Precision.F32
    report = artifact.parity(runtime, Precision.BF16)
    if report is not None and report.passed:
        from service.engines.openvino import has_bf16

        return Precision.BF16 if asked is Precision.BF16 or has_bf16() else Precision.F32
    name = artifact.manifest.name
    imported = artifact.manifest.family == IMPORTED
    original = "its original file" if imported else "PyTorch"
    again = "import it again on a CPU with bf16" if imported else f"export it on a CPU with bf16: topfive export {name}"
    reason = (
        f"its parity with {original} was not measured in bf16; {again}"
        if report is None
        else f"it differs too much from {original} in bf16 (max |dp| {report.max_abs_diff:.3g}); see /models/{name}"
    )
    if asked is Precision.BF16:
        raise EngineUnavailableError(f"{name} may not run in bf16 on {runtime}: {reason}")
    log.info("%s runs in f32 on %s: %s", name, runtime, reason)
    return Precision.F32


def build_engine(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
    """The engine itself, with nothing chosen and nothing warmed up; the parity gate uses it too."""
    slots, threads, max_batch = options.slots, options.threads, options.max_batch
    if runtime is Runtime.OPENVINO:
        from service.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(artifact, precision, slots=slots, threads=threads, max_batch=max_batch)
    if runtime is Runtime.TORCH:
        from service.engines.torch import TorchEngine

        return TorchEngine(artifact, threads=slots * threads, max_batch=max_batch)
    from service.engines.onnxruntime import OnnxRuntimeEngine

    if runtime is Runtime.ONNXRUNTIME_CUDA:
        slots = 1
    return OnnxRuntimeEngine(artifact, runtime, slots=slots, threads=threads, max_batch=max_batch, card=options.card)


def warm_up(engine: Engine, size: int) -> None:
    """Run a batch of one and one of `max_batch`, so that no caller pays for memory and compilation."""
    for batch in (1, engine.max_batch):
        engine.run(np.zeros((batch, size, size, 3), dtype=np.uint8))
