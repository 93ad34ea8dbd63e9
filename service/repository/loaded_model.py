"""A loaded model: its artifact, engine, batcher, leases and latency record."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np

from models.artifact.artifact import Artifact, Manifest, WeightSource
from models.catalog import InputSpec
from models.labels import Label
from service.batching.batcher import Batcher, BatcherState
from service.batching.fair_scheduler import FairScheduler
from service.common.clock import Clock, timeout_at
from service.common.errors import EngineError
from service.common.metrics import BatchMetrics, LatencyRecord
from service.common.statistics import MemoryUsage
from service.common.thread_pool import ThreadPool
from service.common.types import BatchLimits, EngineInfo, ModelCard, Probabilities, Sample
from service.engines.base import CPU, CardLostError
from service.engines.selection.opening import OpenedEngine
from service.repository.stuck_batches import StuckBatch

_PROBE_S = 5.0

log = logging.getLogger(__name__)


def warnings_of(manifest: Manifest) -> tuple[str, ...]:
    """Warnings about the model that each answer contains."""
    if manifest.weights.source is WeightSource.UNTRAINED:
        return (
            f"{manifest.name} has untrained weights: its answers mean nothing; "
            f"export it with trained ones: topfive export {manifest.name} --weights pretrained|FILE",
        )
    return ()


@dataclass(slots=True, eq=False)
class Lease:
    """Keeps models loaded until the block ends. A request has one lease for all the models that it asks."""

    models: "list[LoadedModel]" = field(default_factory=list)
    waits: int = 0
    """How many other models the request waits for. Until it waits for none it releases none of its models."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for model in self.models:
            model.release(self)
        self.models.clear()

    def begin_wait(self) -> None:
        self.waits += 1

    def end_wait(self) -> None:
        self.waits -= 1

    def add(self, model: "LoadedModel") -> None:
        self.models.append(model)
        model.leases.append(self)


class LoadedModel:
    """Takes samples, gives rows of probabilities. Made on the event loop; the engine runs in `slots` threads.

    `scheduler` is shared with the other models on the device. While the model has `leases` it is not unloaded.
    """

    def __init__(
        self,
        artifact: Artifact,
        opened: OpenedEngine,
        *,
        limits: BatchLimits,
        clock: Clock,
        metrics: BatchMetrics,
        on_health: Callable[[], None],
        scheduler: FairScheduler | None = None,
    ) -> None:
        self.artifact = artifact
        self.name = self.metrics_label = artifact.manifest.name
        self.labels: Sequence[Label] = artifact.labels
        self.input: InputSpec = artifact.manifest.input
        self.members = (self,)
        """The model itself; an ensemble has its members here."""
        self.member_cards: tuple[ModelCard, ...] = ()
        self.choice = opened.choice
        self._engine = opened.engine
        self.engine_info: EngineInfo = self._engine.describe()
        self.warnings = warnings_of(artifact.manifest)
        self.latency, self.counters = LatencyRecord(), metrics.counters
        manifest = artifact.manifest
        self._card = partial(
            ModelCard,
            name=manifest.name,
            version=artifact.version,
            family=manifest.family,
            parameters=manifest.parameters,
            macs=manifest.macs,
            input_size=manifest.input.crop,
            weights=manifest.weights.source,
            acc1=manifest.acc1,
            acc5=manifest.acc5,
            acc_dataset=manifest.acc_dataset,
        )
        self.memory_bytes = opened.engine.memory_bytes
        self.device = opened.engine.device
        self.last_used_s = clock.now()
        self.closed = False
        self.leases: list[Lease] = []
        self._runs = 0
        self._closing: asyncio.Future[None] | None = None
        self._unload_waits: asyncio.Event | None = None
        """Set once nothing uses the model, if `wait_unused` waits for that."""
        self._scheduler = scheduler or FairScheduler(limits.slots, clock)
        self._clock = clock
        self._max_run_s = limits.max_run_s
        self.slots = limits.slots
        self._free_slots = list(reversed(range(limits.slots)))
        self._stuck: dict[StuckBatch, float] = {}
        """The stuck batches, each with the number of device slots that it takes."""
        self.card_lost: str | None = None
        """Why nothing can run on the GPU in this process any more. None until an engine reports it."""
        self._on_health = on_health
        self._threads = ThreadPool(limits.slots, f"engine-{artifact.manifest.name}")
        self.batcher: Batcher[Sample, Probabilities] = Batcher(
            self._run, limits, clock=clock, metrics=metrics, on_health=on_health, scheduler=self._scheduler
        )

    @property
    def healthy(self) -> bool:
        """Whether it takes work, its last batches did not all fail, no batch is stuck, and its device works."""
        return self.batcher.healthy and not (self._stuck or self._scheduler.all_stuck or self.card_lost)

    @property
    def lost(self) -> bool:
        """Whether only a new process can answer: the batcher is broken, all slots are stuck, or the GPU is lost."""
        stuck = len(self._stuck) >= self.slots or self._scheduler.all_stuck
        return self.batcher.state is BatcherState.BROKEN or stuck or self.card_lost is not None

    @property
    def stuck(self) -> bool:
        return bool(self._stuck)

    @property
    def stuck_batches(self) -> tuple[StuckBatch, ...]:
        return tuple(self._stuck)

    @property
    def idle(self) -> bool:
        """Whether it has no lease and no batch runs."""
        return not (self._busy or self.batcher.admitted)

    @property
    def _busy(self) -> bool:
        return bool(self.leases or self._runs)

    @property
    def layout(self) -> str:
        """Slots and largest batch, as text."""
        return str(self.choice.layout or f"slots {self.slots}, max_batch {self.batcher.max_batch}")

    @property
    def card(self) -> ModelCard:
        """The model, with the latency measured so far."""
        return self._card(latency_ms=self.latency.snapshot())

    @property
    def memory_usage(self) -> tuple[MemoryUsage]:
        """What it holds on its device."""
        kind, _, number = self.device.partition(":")
        return (MemoryUsage("CPU" if kind == CPU else "GPU", int(number or 0), self.memory_bytes),)

    @property
    def gauges(self) -> dict[str, float]:
        """What its metrics show now."""
        return {
            "queue_depth": self.batcher.depth,
            "in_flight": self.batcher.in_flight,
            "admitted": self.batcher.admitted,
            "max_batch": self.batcher.max_batch,
            "healthy": float(self.healthy),
            "damaged_versions": len(self.artifact.damaged_newer),
        }

    def release(self, lease: Lease) -> None:
        """End the lease. The model counts as used now, so other models without a lease are evicted before it."""
        self.leases.remove(lease)
        self.last_used_s = self._clock.now()
        if self._unload_waits is not None and not self._busy:
            self._unload_waits.set()

    def refresh(self, artifact: Artifact) -> None:
        """Take what was read again of the artifact, whose graph is the same."""
        self.artifact = artifact

    async def wait_unused(self, within_s: float) -> bool:
        """Whether within `within_s` seconds it has no lease and no running batch.

        The caller gives it to no further request. A batch may still run after its requests have ended.
        """
        over = self._unload_waits = asyncio.Event()
        timer = self._clock.call_at(self._clock.now() + within_s, over.set)
        try:
            if self._busy:
                await over.wait()
        finally:
            timer.cancel()
            self._unload_waits = None
        return not self._busy

    async def probe(self) -> bool:
        """Whether the engine answers: runs one blank image through the queue, so that a failed model can recover."""
        size = self.artifact.manifest.input.crop
        deadline = self._clock.now() + _PROBE_S
        try:
            with timeout_at(deadline, self._clock), self.batcher.admit():
                await self.batcher.submit(np.zeros((1, size, size, 3), dtype=np.uint8), deadline=deadline)
        except Exception:  # the batcher has counted and logged it; the caller reads its health
            return False
        return True

    async def aclose(self, drain_s: float) -> None:
        """Finish accepted work within `drain_s` seconds, then close the engine. `closed` says whether it is closed."""
        await self.batcher.aclose(drain_s)
        self._threads.close()
        if self.batcher.in_flight:  # a thread is still in the engine; `app.run` ends without it
            return
        if self._closing is None:  # on a thread: it may free gigabytes or write a cache, and other models go on
            thread = ThreadPoolExecutor(
                1, thread_name_prefix=f"close-{self.name}"
            )  # the end of the loop waits for its own
            self._closing = asyncio.get_running_loop().run_in_executor(thread, self._close_engine)
            thread.shutdown(wait=False)
        await asyncio.shield(self._closing)
        self.closed = True

    def _close_engine(self) -> None:
        """Close the engine, on a thread. A failure is only logged, because nothing uses the engine any more."""
        try:
            self._engine.close()
        except Exception:  # a runtime's own exceptions have no common base
            log.exception("%s: its engine failed to close; some of its memory may not come back", self.name)

    async def _run(self, samples: Sequence[Sample]) -> list[Probabilities | Exception]:
        """Run a batch on an engine thread. If it does not return in time, the model is unhealthy until it does."""
        now, slot = self._clock.now(), self._free_slots.pop()
        stuck = StuckBatch(self.name, self.artifact.version, self.engine_info, slot, len(samples), now)
        timer = self._clock.call_at(now + self._max_run_s, partial(self._note_stuck, stuck))
        self._runs += 1
        try:
            return await self._threads.run(self._run_batch, samples)
        except CardLostError as error:
            if self.card_lost is None:
                self.card_lost = str(error)
                self._on_health()
            raise
        finally:
            timer.cancel()
            self._free_slots.append(slot)
            self._runs -= 1
            if stuck in self._stuck:
                self._note_returned(stuck)
            if self._unload_waits is not None and not self._busy:
                self._unload_waits.set()

    def _note_stuck(self, stuck: StuckBatch) -> None:
        slots = self._scheduler.weight(self.slots)
        self._stuck[stuck] = slots
        self._scheduler.stuck += slots
        log.error("%s: %s", self.name, stuck.described(self._clock.now()))
        self._on_health()

    def _note_returned(self, stuck: StuckBatch) -> None:
        self._scheduler.stuck -= self._stuck.pop(stuck)
        lasted_s = stuck.age_s(self._clock.now())
        log.warning("%s: slot %s has returned after %.0f s", self.name, stuck.slot, lasted_s)
        self._on_health()

    def _run_batch(self, samples: Sequence[Sample]) -> list[Probabilities | Exception]:
        """Run on an engine thread, and check each row; a row that is not finite fails alone."""
        probabilities = self._engine.run(samples)
        expected = (len(samples), self.artifact.manifest.classes)
        if probabilities.shape != expected:
            raise EngineError(f"the engine gave {probabilities.shape}, not {expected}")
        finite: list[bool] = np.all(np.isfinite(probabilities), axis=1).tolist()
        return [
            row if good else EngineError("the engine gave numbers that are not finite")
            for row, good in zip(probabilities, finite, strict=True)
        ]
