"""The benchmark of overhead: what it reports was spent."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.overhead import Overhead, RequestKind, measure_overhead, medians, overhead_server
from benchmarks.overhead_server import OverheadServer
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from loadgen.connection import LoadTestError


def measured(kind: RequestKind, server: ServerUnderTest, photo: bytes) -> Overhead:
    """What a request costs a running server."""
    return asyncio.run(measure_overhead(kind, server.ports[0], photo, connections=2, requests=20))


@pytest.mark.parametrize("kind", OverheadServer)
def test_measured(exported: Path, photo: bytes, tmp_path: Path, kind: OverheadServer) -> None:
    """Each kind of request costs some CPU time, most of it on the event loop; decoding is counted apart."""
    with ServerUnderTest(overhead_server(kind, "tiny", exported), tmp_path, ready_endpoint) as server:
        for one in (measured(request, server, photo) for request in RequestKind):
            assert 0.01 < one.loop_ms < 1.05 * one.cpu_ms < 100  # two clocks, which are not read at once
            assert one.switches > 0
            assert (one.decode_ms > 0.1) is (kind is OverheadServer.REAL)


def test_a_failed_request_ends_it(exported: Path, tmp_path: Path) -> None:
    """A server that refuses what it is asked is no measurement."""
    started = ServerUnderTest(overhead_server(OverheadServer.REAL, "tiny", exported), tmp_path, ready_endpoint)
    with started as server, pytest.raises(LoadTestError, match="422"):
        measured(RequestKind.RAW, server, b"no photo")


def test_medians() -> None:
    """Each figure has its own median."""
    rounds = [Overhead(1.0, 9.0, 0.0, 5.0, 1.0), Overhead(2.0, 7.0, 3.0, 4.0, 3.0), Overhead(3.0, 8.0, 1.0, 6.0, 2.0)]
    assert medians(rounds) == Overhead(2.0, 8.0, 1.0, 5.0, 2.0)
