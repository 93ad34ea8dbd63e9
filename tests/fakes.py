"""Scripted stand-ins: a clock that tests advance, an engine that does what it is told, metrics that tests read."""

import asyncio
import heapq
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from models.artifact.artifact import Artifact
from service.common.clock import Timer
from service.common.statistics import VersionCounters
from service.common.types import Batch, EngineInfo, ItemOutcome, Probabilities, Rows, SloOutcome
from service.engines.base import CPU, Engine
from service.engines.selection.opening import Choice, OpenedEngine


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A `Clock` whose time moves only by `advance`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    @property
    def pending(self) -> int:
        """Timers that are set and not cancelled."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def jump(self, seconds: float) -> None:
        """Move time on without running what falls due: what a loop sees that was busy elsewhere."""
        self._now += seconds

    async def advance(self, seconds: float) -> None:
        """Move time on, running what falls due in order, and let the loop settle."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if (callback := timer.callback) is not None:
                timer.callback = None
                callback()
            await settle()
        self._now = until
        await settle()


async def settle() -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def reached(condition: Callable[[], bool]) -> None:
    """Wait until work on another thread has made `condition` true."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never reached")


class Tally:
    """`BatchMetrics` that tests read."""

    def __init__(self) -> None:
        self.counters = VersionCounters("tiny", 1)
        self.outcomes: Counter[ItemOutcome] = Counter()
        self.slo: Counter[SloOutcome] = Counter()
        self.sizes: list[int] = []
        self.queued_s: list[float] = []
        self.runs_s: list[float] = []

    def item_ended(self, outcome: ItemOutcome) -> None:
        self.outcomes[outcome] += 1

    def slo_ended(self, outcome: SloOutcome, count: int) -> None:
        self.slo[outcome] += count

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        self.sizes.append(size)
        self.queued_s.extend(queued_s)

    def batch_ended(self, run_s: float, size: int, failed: bool) -> None:
        self.runs_s.append(run_s)


class FakeEngine(Engine):
    """An `Engine` for 10 to 1000 classes: the mean brightness of an image decides its class.

    `script` holds what the next runs do: an exception to raise, or probabilities to give; when it is empty the engine
    answers. While `gate` is cleared, runs wait in their thread.
    """

    def __init__(self, classes: int = 1000, *, slots: int = 1, max_batch: int = 8, device: str = CPU) -> None:
        self.classes = classes
        self.slots = slots
        self.max_batch = max_batch
        self.device = device
        self.memory_bytes = 1000
        self.input_size = 32
        self.script: list[Exception | Probabilities] = []
        self.batches: list[int] = []
        self.closed = False
        self._inside: list[Rows] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, rows: Rows) -> Probabilities:
        batch = np.asarray(rows)
        self._inside.append(rows)
        try:
            assert self.gate.wait(30), "a test left the gate closed"
            return self._answer(batch)
        finally:
            self._inside.pop()

    @property
    def running(self) -> int:
        """How many runs have begun and not returned."""
        return len(self._inside)

    def _answer(self, batch: Batch) -> Probabilities:
        self.batches.append(len(batch))
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            return step
        best = batch.reshape(len(batch), -1).mean(axis=1).astype(int) % self.classes
        probabilities = np.full((len(batch), self.classes), 0.5 / (self.classes - 1), dtype=np.float32)
        probabilities[np.arange(len(batch)), best] = 0.5
        return probabilities

    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "1", CPU, "f32")

    def close(self) -> None:
        self.closed = True


class Opener:
    """Opens the engine that `make` gives for an artifact, and keeps those that it opened.

    `script` holds what the next openings raise; when it is empty they succeed. While `gate` is cleared, openings wait
    in their thread. `begun` counts them all.
    """

    def __init__(self, make: Callable[[Artifact], FakeEngine] = lambda _artifact: FakeEngine()) -> None:
        self.make = make
        self.begun = 0
        self.opened: list[FakeEngine] = []
        self.script: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, artifact: Artifact) -> OpenedEngine:
        self.begun += 1
        assert self.gate.wait(30), "a test left the gate closed"
        if self.script:
            raise self.script.pop(0)
        engine = self.make(artifact)
        self.opened.append(engine)
        return OpenedEngine(engine)


def opener(engine: FakeEngine, choice: Choice | None = None) -> Callable[[Artifact], OpenedEngine]:
    """Opens `engine` for every artifact, chosen so."""
    return lambda _artifact: OpenedEngine(engine, choice or Choice())


class ScriptedRun:
    """A batcher's `run` over whole numbers: gives `answer(item)` for each, and an exception for those in `bad`.

    `script` holds what the next runs do instead: an exception to raise, or rows to give; None answers. While `busy` is
    true, runs wait for `finish`.
    """

    def __init__(self, *, busy: bool = True) -> None:
        self.busy = busy
        self.bad: set[int] = set()
        self.script: list[BaseException | list[str | Exception] | None] = []
        self.calls: list[list[int]] = []
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def running(self) -> int:
        """Runs that have begun and wait for `finish`."""
        return len(self._waiting)

    async def __call__(self, items: Sequence[int]) -> list[str | Exception]:
        self.calls.append(list(items))
        step = self.script.pop(0) if self.script else None
        if self.busy:
            gate = asyncio.get_running_loop().create_future()
            self._waiting.append(gate)
            await gate
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            return step
        return [ValueError(f"bad row {item}") if item in self.bad else self.answer(item) for item in items]

    @staticmethod
    def answer(item: int) -> str:
        """What a run gives for a good item."""
        return f"answer to {item}"

    def release(self) -> None:
        """Let the oldest run go on, which it does when the loop turns."""
        self._waiting.pop(0).set_result(None)

    async def finish(self, count: int = 1) -> None:
        """Let the `count` oldest runs end, and the loop settle."""
        for _ in range(count):
            self.release()
            await settle()


class SlowImage(bytes):
    """An image whose decoding waits for `gate` on its thread; `decoding` is set once it has begun."""

    def __init__(self, _content: bytes) -> None:
        self.decoding = threading.Event()
        self.gate = threading.Event()

    def __len__(self) -> int:
        if threading.current_thread() is not threading.main_thread():
            self.decoding.set()
            assert self.gate.wait(30), "a test left the gate closed"
        return super().__len__()
