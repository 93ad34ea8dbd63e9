"""All loads of one call, one after the other, against the same servers."""

import asyncio
import resource
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from loadgen.connection import LoadError
from loadgen.images import Photo
from loadgen.loops import ClosedLoop, Loop, OpenLoop, at_random, in_turn, poisson
from loadgen.measurement import Load, Measurement, Plan, Watch
from loadgen.recorder import Recorder
from loadgen.results import Point
from loadgen.target import Target
from service.common.clock import LoopClock

T = TypeVar("T")

_OTHER_FILES = 64  # that a process has open beside its connections


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured and how.

    `shuffled` draws images at random instead of in turn; `bound` is the most connections that a rate opens.
    `allow_errors` measures also where the first request fails.
    """

    target: Target
    photos: tuple[Photo, ...]
    loads: tuple[Load, ...]
    plan: Plan
    seed: int
    shuffled: bool
    bound: int
    allow_errors: bool


async def run(job: Job, stop: asyncio.Event, watch: Watch, say: Callable[[str], None]) -> tuple[Point, ...]:
    """A point for each load, the last one cut short where `stop` is set; `say` gets what the servers answer first.

    Raises LoadError where a server cannot be measured, or `stop` was set before one was.
    """
    points: list[Point] = []
    _make_room(job)
    try:
        try:
            for line in await _unless(stop, job.target.check()):
                say(line)
        except LoadError as error:
            if not job.allow_errors or stop.is_set():
                raise
            say(str(error))
        for load in job.loads:
            if not stop.is_set():
                points.append(await _measured(job, load, stop, watch))
    finally:
        await job.target.aclose()
    return tuple(points)


def _make_room(job: Job) -> None:
    """Let this process have as many files open as there will be connections. Raises LoadError."""
    connections = max(job.bound if load.connections is None else load.connections for load in job.loads)
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or needed <= hard:
        if soft != resource.RLIM_INFINITY and needed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    fewer = "--connections" if any(load.connections for load in job.loads) else "--max-connections"
    raise LoadError(
        f"{connections} connections need {needed} open files, but this process may have {hard}: "
        f"raise `ulimit -Hn`, or lower {fewer}"
    )


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, or LoadError as soon as `stop` is set."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise LoadError("stopped before anything was measured")
        return working.result()
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


async def _measured(job: Job, load: Load, stop: asyncio.Event, watch: Watch) -> Point:
    clock, count, target = LoopClock(), len(job.photos), job.target
    recorder = Recorder([len(payload) for payload in target.payloads[0]], [photo.group for photo in job.photos])
    pick = at_random(count, job.seed) if job.shuffled else in_turn(count)
    if load.rate is not None:
        gaps = poisson(load.rate, job.seed)
        loop: Loop = OpenLoop(target.line, gaps, pick, recorder, clock, job.bound)
    else:
        loop = ClosedLoop(target.line, load.connections or 1, pick, recorder, clock)
    return await Measurement(load, loop, recorder, job.plan, clock=clock, stop=stop, watch=watch).run()
