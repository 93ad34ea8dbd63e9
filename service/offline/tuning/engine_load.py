"""Measures an engine under the load of a server: threads decode a photo while its slots run batches.

There is no event loop and no transport.
"""

import queue
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass

from models.catalog import InputSpec
from service.batching.cost_model import even_share
from service.common.types import Decode, ImageLimits, Sample
from service.engines.base import Engine
from service.preprocessing import decode, transforms


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load on an engine: `clients` send the same photo again as soon as they have the answer.

    `spec` is the input of the model.
    """

    photo: bytes
    spec: InputSpec
    decoding_threads: int
    clients: int


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Images per second, median run time of a batch, and CPU time per image.

    `run_ms` excludes the wait for a slot, which depends on the clients. `cpu_ms` is the CPU time of the process,
    including decoding.
    """

    images_per_s: float
    run_ms: float
    cpu_ms: float


def measure(engine: Engine, load: EngineLoad, max_batch: int, seconds: float) -> EngineSpeed:
    """Measure `engine` with batches of up to `max_batch`. Raises the errors of the engine and the decoder.

    It takes longer than `seconds` if two batches have not ended by then.
    """
    test = _LoadTest(engine, load, max_batch)
    started_s = time.process_time()
    with ThreadPoolExecutor(load.decoding_threads + engine.slots) as pool:
        decoders = [pool.submit(test.decode) for _ in range(load.decoding_threads)]
        slots = [pool.submit(test.run, slot) for slot in range(engine.slots)]
        test.over.wait(seconds)
        while len(test.ended) < 2 and not test.over.is_set():
            test.over.wait(seconds / 10)
        test.over.set()
        test.free.release(load.decoding_threads)
        wait(decoders)
        for _ in slots:
            test.samples.put(None)
    for thread in (*decoders, *slots):
        thread.result()
    return _speed(sorted(test.ended), time.process_time() - started_s)


def median(rounds: Sequence[EngineSpeed]) -> EngineSpeed:
    """The median of each figure."""
    return EngineSpeed(*(statistics.median(column) for column in zip(*map(astuple, rounds), strict=True)))


class _LoadTest:
    """State shared by the threads of one measurement. `ended` has the end, size and seconds of each batch."""

    def __init__(self, engine: Engine, load: EngineLoad, max_batch: int) -> None:
        self.over = threading.Event()
        self.free = threading.Semaphore(load.clients)
        self.samples: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self.ended: list[tuple[float, int, float]] = []
        self._engine = engine
        self._load = load
        self._max_batch = max_batch
        self._running = [0] * engine.slots  # images in the batch of each slot

    def decode(self) -> None:
        """Decode the photo for each client that has no image in flight, on a thread."""
        limits, spec = ImageLimits(), self._load.spec
        enough = transforms.needed_side(spec, Decode.AUTO)  # as the server does by default
        try:
            while self.free.acquire() and not self.over.is_set():
                self.samples.put(
                    transforms.make_samples(spec, decode.decode_image(self._load.photo, limits, enough), 1)[0]
                )
        finally:
            self.over.set()

    def run(self, slot: int) -> None:
        """Run batches on a thread, each an even share of the waiting images, as the batcher does."""
        try:
            while (first := self.samples.get()) is not None and not self.over.is_set():
                even = even_share(1 + self.samples.qsize(), sum(self._running), self._engine.slots)
                batch = [first, *self._waiting(min(self._max_batch, even) - 1)]
                self._running[slot] = len(batch)
                started = time.monotonic()
                self._engine.run(batch)
                ended = time.monotonic()
                self._running[slot] = 0
                self.ended.append((ended, len(batch), ended - started))
                self.free.release(len(batch))
        finally:
            self.over.set()

    def _waiting(self, most: int) -> list[Sample]:
        found: list[Sample] = []
        while len(found) < most:
            try:
                sample = self.samples.get_nowait()
            except queue.Empty:
                break
            if sample is None:
                self.samples.put(None)  # for the next slot
                break
            found.append(sample)
        return found


def _speed(ended: Sequence[tuple[float, int, float]], cpu_s: float) -> EngineSpeed:
    """The rate from the end of the first batch to the end of the last: before that, threads were still starting."""
    took_s = ended[-1][0] - ended[0][0]
    sizes = [size for _, size, _ in ended]
    run_s = statistics.median(run_s for _, _, run_s in ended)
    return EngineSpeed(sum(sizes[1:]) / took_s, run_s * 1000, cpu_s / sum(sizes) * 1000)
