"""Builds a plan from an ONNX file with TensorRT or TensorRT for RTX, whose modules have one shape. Writes no file."""

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from service.engines.tensorrt.packages import TensorRtLog, logger

Progress = Callable[[str, int, int], None]
"""Called with the builder's name for what it does, the steps done, and the steps in all; from any thread."""

_WORKSPACE_BYTES = 8 << 30  # maps of a batch count too: 2 GiB are too few for EfficientNet-B4 at 32
_NO_DRIVER = "cudaError 35"  # TensorRT for RTX says so beside every error where there is no card, which it needs not
_UNKNOWN_CARD = "not supported by this TensorRT release"
_NO_ROOM = "OutOfMemory"
_OPTIMISATION_LEVEL = 3  # TensorRT's default: all kernels are tried; from 4 on a build takes many times as long


class BuildError(Exception):
    """The parser or the builder refused; the message has its own words."""


@dataclass(frozen=True, slots=True)
class Job:
    """One plan to build: from which file, for images of `size` x `size`, for which batches and cards.

    `timings` is a timing cache of TensorRT's, empty for none; TensorRT for RTX has none.
    """

    flavour: Flavour
    graph: Path
    size: int
    profile: BatchProfile
    targets: tuple[ComputeCapability, ...]
    timings: bytes = b""


@dataclass(frozen=True, slots=True)
class Written:
    """A plan, what the builder warned of, how long it took, and for TensorRT all timings it knows now."""

    content: bytes
    warnings: tuple[str, ...]
    build_s: float
    timings: bytes = b""


def known_targets(trt: ModuleType) -> tuple[ComputeCapability, ...]:
    """The compute capabilities that this TensorRT for RTX builds for."""
    named = (name for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return tuple(sorted(ComputeCapability.parse(name.lower()) for name in named))


def build_plan(trt: ModuleType, job: Job, progress: Progress) -> Written:
    """Build on a thread of its own, so that an interruption reaches this one: it ends the build, and is raised then.

    Raises BuildError.
    """
    cancelled = Event()
    written: Future[Written] = Future()

    def run() -> None:
        try:
            written.set_result(_build(trt, job, progress, cancelled))
        except BaseException as error:
            # The error would keep the builder, and TensorRT gives all words to the first logger that is still there.
            traceback.clear_frames(error.__traceback__)
            written.set_exception(error)

    thread = Thread(target=run, name="builder")
    try:
        thread.start()
        return written.result()
    except KeyboardInterrupt:
        cancelled.set()
        raise
    finally:
        if thread.is_alive():
            thread.join()  # the builder stops at its next step


def _build(trt: ModuleType, job: Job, progress: Progress, cancelled: Event) -> Written:
    words = TensorRtLog()
    log = logger(trt, words)
    began = time.monotonic()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its constructor raises where there is no driver
        raise BuildError(f"{job.flavour} has no builder here: {words.last()} ({error})") from error
    # TensorRT 11 knows no other networks; 10 needs to be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, job, network, log, words)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.builder_optimization_level = _OPTIMISATION_LEVEL
    config.max_aux_streams = 0  # a slot of the service has one stream
    config.clear_flag(trt.BuilderFlag.TF32)  # f32 is f32
    monitor = _monitor(trt, progress, cancelled)
    config.progress_monitor = monitor
    _set_profile(job, builder, network, config, words)
    if job.flavour is Flavour.TENSORRT_RTX:
        _set_targets(trt, job, config, words)
    else:
        _set_timings(job, config, words)
    plan = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise BuildError(f"{job.flavour} cannot build it for {_targets(job)}: {_reason(words)}")
    timings = b"" if job.flavour is Flavour.TENSORRT_RTX else bytes(config.get_timing_cache().serialize())
    return Written(bytes(plan), tuple(dict.fromkeys(words.warnings)), time.monotonic() - began, timings)


def _parse(trt: ModuleType, job: Job, network: Any, log: Any, words: TensorRtLog) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(job.graph)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [
        " ".join(part for part in (error.node_name(), error.node_operator()) if part) + f": {_line(error.desc())}"
        for error in errors
    ]
    raise BuildError(f"{job.flavour} cannot read the graph: {'; '.join(lines) or _reason(words)}")


def _line(text: str) -> str:
    """The parser's description without its breaks."""
    return " ".join(line for line in text.splitlines() if _NO_DRIVER not in line)


def _set_profile(job: Job, builder: Any, network: Any, config: Any, words: TensorRtLog) -> None:
    image, sizes = network.get_input(0), job.profile
    shapes = [(batch, job.size, job.size, 3) for batch in (sizes.smallest, sizes.best, sizes.largest)]
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(image.name, *shapes)
    except ValueError as error:
        raise BuildError(f"{job.flavour} refuses batches of {sizes.smallest} to {sizes.largest}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(
            f"{job.flavour} refuses batches of {sizes.smallest} to {sizes.largest}, best {sizes.best}: {_reason(words)}"
        )


def _set_targets(trt: ModuleType, job: Job, config: Any, words: TensorRtLog) -> None:
    """Each must be taken: where one is not, the plan would be built for other cards, and nothing would say so."""
    config.num_compute_capabilities = len(job.targets)
    for index, target in enumerate(job.targets):
        capability = trt.ComputeCapability.__members__[str(target).upper()]
        if not config.set_compute_capability(capability, index):
            raise BuildError(f"{job.flavour} does not take {target} as a target: {_reason(words)}")


def _set_timings(job: Job, config: Any, words: TensorRtLog) -> None:
    """Give it the cache, or an empty one where TensorRT does not take it."""
    known = config.create_timing_cache(job.timings)
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        words.warnings.append("the timing cache was not taken; every kernel is measured again")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _reason(words: TensorRtLog) -> str:
    """Why it was refused, and what may help: the version before TensorRT 11 knows older cards, a batch may be large."""
    said = TensorRtLog([line for line in words.errors if _NO_DRIVER not in line]).last()
    old = "; pip install 'tensorrt~=10.16' may know this card" if _UNKNOWN_CARD in said else ""
    full = "; use --batch with a smaller largest size" if _NO_ROOM in said else ""
    return said + old + full


def _targets(job: Job) -> str:
    return ", ".join(map(str, job.targets))


def _monitor(trt: ModuleType, progress: Progress, cancelled: Event) -> Any:
    """TensorRT's own words on how far it is, and its question at each step whether to go on."""

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
            except Exception as error:  # none may pass through the builder, which knows no Python
                self.failure = error

    return Monitor()
