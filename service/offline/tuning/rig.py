"""Runs an engine as the server does, with threads that decode beside it, and counts what comes out.

There is no event loop and no transport: threads decode one photo over and over, and each slot takes what waits.
"""

import queue
import statistics
import threading
import time
from dataclasses import astuple, dataclass, field

from models.catalog import InputSpec
from service.batching.cost_model import even_part
from service.common.types import Decode, ImageLimits, Sample
from service.engines.base import Engine
from service.preprocessing import decode, transforms


@dataclass(frozen=True, slots=True)
class Load:
    """The work: one photo as it is sent, the recipe of the model, how many threads decode, and how many wait for it.

    Each of `callers` asks again as soon as it has its answer.
    """

    photo: bytes
    spec: InputSpec
    decoders: int
    callers: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Images per second; the median of the milliseconds that one batch ran; milliseconds of CPU per image.

    The wait for a slot is not in `run_ms`: that depends on how many ask, not on the engine. `cpu_ms` is that of the
    whole process, decoding included.
    """

    images_per_s: float
    run_ms: float
    cpu_ms: float


@dataclass(slots=True)
class _Shared:
    """What the threads of one measurement share."""

    samples: "queue.SimpleQueue[Sample | None]"
    places: threading.Semaphore
    running: list[int]
    """How many images each slot has in its batch."""
    over: threading.Event = field(default_factory=threading.Event)
    ended: list[tuple[float, int, float]] = field(default_factory=list)
    """Of each batch when it ended, its size, and the seconds that it ran."""
    failures: list[Exception] = field(default_factory=list)


def measure(engine: Engine, load: Load, max_batch: int, seconds: float) -> Figures:
    """What `engine` does in `seconds` with batches of at most `max_batch`. Raises what it raises.

    It takes longer where two batches have not ended by then.
    """
    shared = _Shared(queue.SimpleQueue(), threading.Semaphore(load.callers), [0] * engine.slots)
    decoders = [threading.Thread(target=_decode, args=(load, shared), daemon=True) for _ in range(load.decoders)]
    runners = [
        threading.Thread(target=_run, args=(engine, slot, max_batch, shared), daemon=True)
        for slot in range(engine.slots)
    ]
    began_s = time.process_time()
    for thread in (*decoders, *runners):
        thread.start()
    shared.over.wait(seconds)
    while len(shared.ended) < 2 and not shared.failures:
        shared.over.wait(seconds / 10)
    shared.over.set()
    shared.places.release(load.decoders)
    for thread in decoders:
        thread.join()
    for _ in runners:
        shared.samples.put(None)
    for thread in runners:
        thread.join()
    if shared.failures:
        raise shared.failures[0]
    return _figures(shared.ended, time.process_time() - began_s)


def median(rounds: list[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(*(statistics.median(column) for column in zip(*map(astuple, rounds), strict=True)))


def _decode(load: Load, shared: _Shared) -> None:
    """On a thread: as many photos as there are places for."""
    limits, enough = ImageLimits(), transforms.enough(load.spec, Decode.AUTO)  # as the server does by itself
    try:
        while True:
            shared.places.acquire()
            if shared.over.is_set():
                return
            shared.samples.put(transforms.crops(load.spec, decode.picture(load.photo, limits, enough), 1)[0])
    except Exception as error:  # raised again by `measure`
        _fail(shared, error)


def _run(engine: Engine, slot: int, max_batch: int, shared: _Shared) -> None:
    """On a thread: an even part of what waits, as the batcher takes it; after the end those that wait are dropped."""
    try:
        while (first := shared.samples.get()) is not None and not shared.over.is_set():
            even = even_part(1 + shared.samples.qsize(), sum(shared.running), engine.slots)
            batch = [first, *_waiting(shared, min(max_batch, even) - 1)]
            shared.running[slot] = len(batch)
            began = time.monotonic()
            engine.run(batch)
            ended = time.monotonic()
            shared.running[slot] = 0
            shared.ended.append((ended, len(batch), ended - began))
            shared.places.release(len(batch))
    except Exception as error:  # raised again by `measure`
        _fail(shared, error)


def _waiting(shared: _Shared, most: int) -> list[Sample]:
    found: list[Sample] = []
    while len(found) < most:
        try:
            sample = shared.samples.get_nowait()
        except queue.Empty:
            break
        if sample is None:
            shared.samples.put(None)  # for the next runner
            break
        found.append(sample)
    return found


def _fail(shared: _Shared, error: Exception) -> None:
    shared.failures.append(error)
    shared.over.set()


def _figures(ended: list[tuple[float, int, float]], cpu_s: float) -> Figures:
    """Between the end of the first batch and that of the last: before the first, threads were still starting."""
    ended = sorted(ended)
    took_s = ended[-1][0] - ended[0][0]
    images = sum(size for _, size, _ in ended[1:])
    run_s = statistics.median(run_s for _, _, run_s in ended)
    every = sum(size for _, size, _ in ended)
    return Figures(images / took_s, run_s * 1000, cpu_s / every * 1000)
