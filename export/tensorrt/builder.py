"""Builds a plan from an ONNX file with TensorRT or TensorRT for RTX, which have the same interface. Writes no file."""

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

from export.common import ExportError
from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from service.engines.tensorrt.packages import TensorRtLog, logger

Progress = Callable[[str, int, int], None]
"""Called with the builder's name of a phase, the steps done and the steps in all; from any thread."""

_WORKSPACE_BYTES = 8 << 30  # for the feature maps of a batch too: 2 GiB are too few for EfficientNet-B4 at 32
_NO_DRIVER = "cudaError 35"  # TensorRT for RTX adds this to every error if there is no GPU; it needs none
_UNKNOWN_CARD = "not supported by this TensorRT release"
_OUT_OF_MEMORY = "OutOfMemory"
_OPTIMISATION_LEVEL = 3  # TensorRT's default tries all kernels; from 4 on a build takes many times as long


class BuildError(ExportError):
    """The parser or the builder fails; the message is its own."""


@dataclass(frozen=True, slots=True)
class BuildJob:
    """One plan to build from the file `graph`, for images of `size` x `size`.

    `timings` is TensorRT's timing cache, empty for none; TensorRT for RTX has none.
    """

    flavour: Flavour
    graph: Path
    size: int
    profile: BatchProfile
    targets: tuple[ComputeCapability, ...]
    timings: bytes = b""


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan, the builder's warnings, the build time, and TensorRT's timing cache after the build."""

    content: bytes
    warnings: tuple[str, ...]
    build_s: float
    timings: bytes = b""


def known_targets(trt: ModuleType) -> tuple[ComputeCapability, ...]:
    """The compute capabilities that this TensorRT for RTX builds for."""
    named = (name for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return tuple(sorted(ComputeCapability.parse(name.lower()) for name in named))


def build_plan(trt: ModuleType, job: BuildJob, progress: Progress) -> BuiltPlan:
    """Build a plan. Raises BuildError.

    The build runs on a thread of its own, so that this thread receives an interruption, ends the build and raises it.
    """
    cancelled = Event()
    built: Future[BuiltPlan] = Future()

    def run() -> None:
        try:
            built.set_result(_build(trt, job, progress, cancelled))
        except BaseException as error:
            # The error would keep the builder, and TensorRT sends all messages to the first logger that still exists.
            traceback.clear_frames(error.__traceback__)
            built.set_exception(error)

    thread = Thread(target=run, name="builder")
    try:
        thread.start()
        return built.result()
    except KeyboardInterrupt:
        cancelled.set()
        raise
    finally:
        if thread.is_alive():
            thread.join()  # the builder stops at its next step


def _build(trt: ModuleType, job: BuildJob, progress: Progress, cancelled: Event) -> BuiltPlan:
    messages = TensorRtLog()
    log = logger(trt, messages)
    began = time.monotonic()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its constructor raises if there is no driver
        raise BuildError(f"{job.flavour} has no builder here: {messages.last()} ({error})") from error
    # The default of TensorRT 11; TensorRT 10 needs the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, job, network, log, messages)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.builder_optimization_level = _OPTIMISATION_LEVEL
    config.max_aux_streams = 0  # a slot of the service has one stream
    config.clear_flag(trt.BuilderFlag.TF32)  # f32 is f32
    monitor = _monitor(trt, progress, cancelled)
    config.progress_monitor = monitor
    _set_profile(job, builder, network, config, messages)
    if job.flavour is Flavour.TENSORRT_RTX:
        _set_targets(trt, job, config, messages)
    else:
        _set_timings(job, config, messages)
    plan = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        targets = ", ".join(map(str, job.targets))
        raise BuildError(f"{job.flavour} cannot build it for {targets}: {_reason(messages)}")
    timings = b"" if job.flavour is Flavour.TENSORRT_RTX else bytes(config.get_timing_cache().serialize())
    return BuiltPlan(bytes(plan), tuple(dict.fromkeys(messages.warnings)), time.monotonic() - began, timings)


def _parse(trt: ModuleType, job: BuildJob, network: Any, log: Any, messages: TensorRtLog) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(job.graph)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [
        " ".join(part for part in (error.node_name(), error.node_operator()) if part) + f": {_one_line(error.desc())}"
        for error in errors
    ]
    raise BuildError(f"{job.flavour} cannot read the graph: {'; '.join(lines) or _reason(messages)}")


def _one_line(text: str) -> str:
    return " ".join(line for line in text.splitlines() if _NO_DRIVER not in line)


def _set_profile(job: BuildJob, builder: Any, network: Any, config: Any, messages: TensorRtLog) -> None:
    image, sizes = network.get_input(0), job.profile
    shapes = [(batch, job.size, job.size, 3) for batch in (sizes.smallest, sizes.best, sizes.largest)]
    profile = builder.create_optimization_profile()
    refusal = f"{job.flavour} refuses batches of {sizes.smallest} to {sizes.largest}, best {sizes.best}"
    try:
        profile.set_shape(image.name, *shapes)
    except ValueError as error:
        raise BuildError(f"{refusal}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"{refusal}: {_reason(messages)}")


def _set_targets(trt: ModuleType, job: BuildJob, config: Any, messages: TensorRtLog) -> None:
    """Raise BuildError if a target is refused: the plan would silently be built for the other GPUs."""
    config.num_compute_capabilities = len(job.targets)
    for index, target in enumerate(job.targets):
        capability = trt.ComputeCapability.__members__[str(target).upper()]
        if not config.set_compute_capability(capability, index):
            raise BuildError(f"{job.flavour} does not take {target} as a target: {_reason(messages)}")


def _set_timings(job: BuildJob, config: Any, messages: TensorRtLog) -> None:
    """Give TensorRT the timing cache, or an empty one if it refuses that."""
    known = config.create_timing_cache(job.timings)
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        messages.warnings.append("the timing cache was not taken; every kernel is measured again")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _reason(messages: TensorRtLog) -> str:
    """The last errors and a remedy: TensorRT 10 knows older GPUs, and a smaller batch needs less memory."""
    said = TensorRtLog([line for line in messages.errors if _NO_DRIVER not in line]).last()
    old = "; pip install 'tensorrt~=10.16' may know this GPU" if _UNKNOWN_CARD in said else ""
    full = "; use --batch with a smaller largest size" if _OUT_OF_MEMORY in said else ""
    return said + old + full


def _monitor(trt: ModuleType, progress: Progress, cancelled: Event) -> Any:
    """An object that TensorRT calls at each step: it reports the progress, and stops a build that is cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None
            self._phases: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._phases[phase] = steps
            self._show(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._show(phase, step + 1)
            return self.failure is None and not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

        def _show(self, phase: str, done: int) -> None:
            try:
                progress(phase, done, self._phases.get(phase, done))
            except Exception as error:  # none may pass through the builder, which is C++
                self.failure = error

    return Monitor()
