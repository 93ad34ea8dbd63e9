"""The benchmark of overhead: what it reports was spent."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.overhead import RequestKind, cpu_ms, overhead_server
from benchmarks.overhead_server import OverheadServer
from benchmarks.server_under_test import ServerUnderTest


def measured(kind: RequestKind, server: ServerUnderTest, photo: bytes) -> float:
    """What a request costs a running server, in milliseconds."""
    return asyncio.run(cpu_ms(kind, server, photo, connections=2, requests=20))


@pytest.mark.parametrize("kind", OverheadServer)
def test_measured(exported: Path, photo: bytes, tmp_path: Path, kind: OverheadServer) -> None:
    """Each kind of request costs some CPU time."""
    with ServerUnderTest(overhead_server(kind, "tiny", exported), tmp_path, photo) as server:
        for request in RequestKind:
            assert 0.01 < measured(request, server, photo) < 100
