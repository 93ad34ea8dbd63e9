"""Puts load on a server with the load generator of `topfive bench`, and reads what that cost the server."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from benchmarks.requests import connect_to
from benchmarks.server_under_test import ServerUnderTest
from loadgen.connection import Connect, LoadTestError
from loadgen.measurement import LoadLevel, LoadResult, MeasurementPlan, measure

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What was measured under a load, and the CPU milliseconds of the server for each request."""

    result: LoadResult
    cpu_ms: float


PutLoad = Callable[[ServerUnderTest, bytes, LoadLevel, float], ServerLoad]
"""Sends a photo to a server again and again for so many seconds. Raises LoadTestError."""


def put_load(server: ServerUnderTest, photo: bytes, level: LoadLevel, seconds: float) -> ServerLoad:
    """Load a server with the generator of `topfive bench`. Raises LoadTestError where no request was answered well."""
    connect = connect_to(server.spec, server.addresses, photo)
    before = server.cpu_s()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(connect, 1, level, MeasurementPlan(warm_up_s=0, seconds=seconds)))
    cpu_s = server.cpu_s() - before
    if not result.requests:
        raise LoadTestError(f"no request was answered well: {result.error_examples or result.errors}")
    return ServerLoad(result, 1000 * cpu_s / (result.requests + result.failed))


async def send_requests(connect: Connect, count: int, connections: int) -> None:
    """Send so many requests over new connections, each one at a time. Raises LoadTestError at the first that fails."""
    left = iter(range(count))

    async def send(number: int) -> None:
        connection = connect(number)
        try:
            for _ in left:
                response = await connection.send(0, _TIMEOUT_S)
                if response.failure:
                    raise LoadTestError(f"a request failed: {response.failure}: {response.text}")
        finally:
            await connection.aclose()

    await asyncio.gather(*map(send, range(connections)))
