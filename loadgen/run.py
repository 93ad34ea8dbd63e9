"""Runs a load test: one load level after the other, against the same servers."""

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass, field

from loadgen.connection import LoadTestError
from loadgen.images import EncodedImage
from loadgen.loops import ClosedLoop, LoadLoop, OpenLoop, at_random, in_turn, poisson_gaps
from loadgen.measurement import LoadMeasurement, MeasurementPlan, OnProgress
from loadgen.recorder import Recorder
from loadgen.results import LevelResult, LoadLevel
from loadgen.target import LoadTarget
from service.common.clock import LoopClock

_OTHER_FILES = 64  # open files of the process other than connections


@dataclass(frozen=True, slots=True)
class LoadTest:
    """The configuration of a load test.

    `shuffle` sends images at random instead of in turn. A rate opens at most `max_connections`. `allow_errors`
    measures also if the first request fails. `seed` is used for the arrivals and for `shuffle`.
    """

    target: LoadTarget
    images: tuple[EncodedImage, ...]
    levels: tuple[LoadLevel, ...]
    plan: MeasurementPlan = field(default_factory=MeasurementPlan)
    seed: int = 0
    shuffle: bool = False
    max_connections: int = 1024
    allow_errors: bool = False


async def run_load_test(
    test: LoadTest, stop: asyncio.Event, on_progress: OnProgress, say: Callable[[str], None]
) -> tuple[LevelResult, ...]:
    """A result for each load level; `say` gets a line about each server's first response.

    Once `stop` is set, the level that runs is cut short and no further one begins. Raises LoadTestError of a server
    that cannot be measured, and if `stop` is set before the first level.
    """
    results: list[LevelResult] = []
    _raise_file_limit(test)
    try:
        try:
            for line in await _check(test.target, stop):
                say(line)
        except LoadTestError as error:
            if not test.allow_errors or stop.is_set():
                raise
            say(str(error))
        for level in test.levels:
            if not stop.is_set():
                results.append(await _measure(test, level, stop, on_progress))
    finally:
        await test.target.aclose()
    return tuple(results)


def _raise_file_limit(test: LoadTest) -> None:
    """Allow this process as many open files as there will be connections. Raises LoadTestError."""
    connections = max(test.max_connections if level.connections is None else level.connections for level in test.levels)
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or needed <= hard:
        if soft != resource.RLIM_INFINITY and needed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    option = "--connections" if any(level.connections for level in test.levels) else "--max-connections"
    raise LoadTestError(
        f"{connections} connections need {needed} open files, but this process may have {hard}: "
        f"raise `ulimit -Hn`, or lower {option}"
    )


async def _check(target: LoadTarget, stop: asyncio.Event) -> list[str]:
    """Send one request to each server; return a line about each response. Raises LoadTestError on error or `stop`."""

    async def check_all() -> list[str]:
        return [await target.check(server) for server in range(len(target.payloads))]

    checking, stopping = asyncio.ensure_future(check_all()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not checking.done():
            raise LoadTestError("stopped before anything was measured")
        return checking.result()
    finally:
        for task in (checking, stopping):
            task.cancel()
        await asyncio.gather(checking, stopping, return_exceptions=True)


async def _measure(test: LoadTest, level: LoadLevel, stop: asyncio.Event, on_progress: OnProgress) -> LevelResult:
    clock, count, connect = LoopClock(), len(test.images), test.target.open_connection
    recorder = Recorder([len(payload) for payload in test.target.payloads[0]], [image.group for image in test.images])
    next_image = at_random(count, test.seed) if test.shuffle else in_turn(count)
    if level.rate is not None:
        gaps = poisson_gaps(level.rate, test.seed)
        loop: LoadLoop = OpenLoop(connect, next_image, recorder, clock, test.max_connections, gaps)
    else:
        loop = ClosedLoop(connect, next_image, recorder, clock, level.connections or 1)
    return await LoadMeasurement(
        level, loop, recorder, test.plan, clock=clock, stop=stop, on_progress=on_progress
    ).run()
