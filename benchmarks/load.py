"""Puts load on a server with the load generator of `topfive bench`, and reads what that cost the server."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import uvloop

from benchmarks.requests import jpeg, photo_target
from benchmarks.server_under_test import ServerUnderTest
from loadgen.connection import Connection, LoadTestError, OpenConnection, RequestResult
from loadgen.measurement import MeasurementPlan
from loadgen.results import LevelResult, LoadLevel
from loadgen.run import LoadTest, run_load_test

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a server did under a load: `cpu_ms` is its CPU time for each request, `errors` counts failed requests.

    `note` says why the figures are rather those of the generator.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    errors: int
    note: str = ""


PutLoad = Callable[[ServerUnderTest, bytes, LoadLevel, float], LoadResult]
"""Sends a photo to a server again and again for so many seconds. Raises LoadTestError."""


def put_load(server: ServerUnderTest, photo: bytes, level: LoadLevel, seconds: float) -> LoadResult:
    """Load a server with the generator of `topfive bench`. Raises LoadTestError where no request was answered well."""
    test = LoadTest(
        target=photo_target(server.spec, server.addresses, photo),
        images=(jpeg(photo),),
        levels=(level,),
        plan=MeasurementPlan(warm_up_s=0, seconds=seconds),
        allow_errors=True,
    )
    before = server.cpu_s()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        (result,) = runner.run(run_load_test(test, asyncio.Event(), lambda _: None, lambda _: None))
    return load_result(result, server.cpu_s() - before, checks=len(server.addresses))


def load_result(result: LevelResult, cpu_s: float, checks: int) -> LoadResult:
    """Sum up what the generator measured. Before that it sent `checks` requests, to see whether the server answers.

    `cpu_s` is the CPU time of the server for all of them. Raises LoadTestError where no request was answered well.
    """
    latency, good = result.latency_ms, sum(group.requests for group in result.groups)
    if not good or latency.p50 is None or latency.p99 is None:
        raise LoadTestError(f"no request was answered well: {result.error_examples or result.errors}")
    return LoadResult(
        per_second=result.requests_per_second,
        p50_ms=latency.p50,
        p99_ms=latency.p99,
        cpu_ms=1000 * cpu_s / (good + result.failed + checks),
        errors=result.failed,
        note="" if result.valid else "; ".join(result.notes),
    )


async def send_requests(open_connection: OpenConnection, indexes: Iterable[int], connections: int) -> None:
    """Send requests over so many new connections; `indexes` are those of the payloads, in their order.

    A connection sends its next request as soon as it has a response. Raises LoadTestError at the first that fails, and
    TimeoutError after five minutes.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    left = iter(indexes)

    def send_next(connection: Connection) -> None:
        index = next(left, None)
        if index is not None:
            connection.send(index, loop.time())
            return
        sending.discard(connection)
        if not sending and not finished.done():
            finished.set_result(None)

    def on_result(connection: Connection, result: RequestResult) -> None:
        if not result.failure:
            send_next(connection)
        elif not finished.done():
            finished.set_exception(LoadTestError(f"a request failed: {result.failure}: {result.text}"))

    opened = [open_connection(number, on_result) for number in range(connections)]
    sending = set(opened)
    try:
        for connection in opened:
            send_next(connection)
        await asyncio.wait_for(finished, _TIMEOUT_S)
    finally:
        await asyncio.gather(*(connection.aclose() for connection in opened))
