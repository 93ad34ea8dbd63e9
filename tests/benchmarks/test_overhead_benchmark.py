"""The benchmark of overhead: it asks what it says it asks, and what it reports was spent."""

from pathlib import Path

import pytest
from multipart import PushMultipartParser, parse_options_header

from benchmarks.figures import medians
from benchmarks.null_server import Decoding
from benchmarks.overhead import Overhead, grpc_load, multipart_body, null_server, raw_body, rest_load

pytestmark = pytest.mark.anyio

REQUESTS = 20


def test_bodies() -> None:
    """Both bodies hold the photo and say how long they are."""
    photo = b"\xff\xd8photo\r\n--"
    for request in (raw_body(photo), multipart_body(photo)):
        head, _, body = request.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head.split(b"\r\n")
        assert photo in body

    kind = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Type:"))
    parser = PushMultipartParser(parse_options_header(kind.decode())[1]["boundary"])
    image, content, end = parser.parse(body)
    parser.close()
    assert (image.name, content, end) == ("image", photo, None)


@pytest.mark.parametrize("decoding", Decoding)
async def test_measured(exported: Path, photo: bytes, decoding: Decoding) -> None:
    """Each kind of request costs some CPU time, most of it on the event loop; decoding is counted apart."""
    async with null_server(decoding, "tiny", exported) as server:
        loads = (
            rest_load(server.port, raw_body(photo)),
            rest_load(server.port, multipart_body(photo)),
            grpc_load(server.grpc_port, photo),
        )
        found = [await server.overhead(load, 2, REQUESTS) for load in loads]

    for one in found:
        assert 0.05 < one.loop_ms <= one.cpu_ms < 100
        assert one.switches > 1
        assert (one.decode_ms > 0.1) is (decoding is Decoding.REAL)


async def test_a_failed_request_ends_it(exported: Path) -> None:
    """A server that refuses what it is asked is no measurement."""
    async with null_server(Decoding.REAL, "tiny", exported) as server:
        with pytest.raises(RuntimeError, match="422"):
            await server.overhead(rest_load(server.port, raw_body(b"no photo")), 1, 1)


def test_medians() -> None:
    """Each figure has its own median."""
    rounds = [
        Overhead(1.0, 9.0, 0.0, 5.0, 10.0),
        Overhead(2.0, 7.0, 3.0, 4.0, 30.0),
        Overhead(3.0, 8.0, 1.0, 6.0, 20.0),
    ]

    assert medians(rounds) == Overhead(2.0, 8.0, 1.0, 5.0, 20.0)
