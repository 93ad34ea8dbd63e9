"""What is sent to servers, and how their answers are read and compared."""

import json

import numpy as np
import pytest

from benchmarks.answers import SAME, AnswerError, ExpectedAnswer, top_five
from benchmarks.requests import bench_photo, photo_request
from benchmarks.servers import Body, ServerSpec
from loadgen.http_connection import ServerAddress
from tests.scripted_server import PHOTO

LISTED = json.dumps([{"class": 3, "probability": 0.5}])


@pytest.mark.parametrize(
    "text",
    [
        LISTED,
        json.dumps([[{"class": 3, "probability": 0.5}]]),
        json.dumps({"outputs": [{"data": [LISTED]}]}),
        json.dumps({"predictions": [{"class_id": 3, "probability": 0.5}]}),
    ],
)
def test_answers(text: str) -> None:
    """Classes are read from the answer of each kind of server."""
    assert top_five(text.encode()) == [(3, 0.5)]


@pytest.mark.parametrize("text", ["{}", "no JSON", '["x"]'])
def test_no_answer(text: str) -> None:
    """What holds no classes is refused."""
    with pytest.raises(AnswerError):
        top_five(text.encode())


def test_agreement() -> None:
    """Classes that are nearly equal may change places; a class that is worse may not take one."""
    close = ExpectedAnswer(PHOTO, np.array([0.30001, 0.3, 0.2, 0.1, 0.06, 0.04], np.float32))
    close.check([(1, 0.3), (0, 0.30001), (2, 0.2), (3, 0.1), (4, 0.06)], SAME)
    with pytest.raises(AnswerError, match="place 3 is class 3"):
        close.check([(0, 0.3), (1, 0.3), (3, 0.2), (2, 0.1), (4, 0.06)], SAME)
    with pytest.raises(AnswerError, match="0 classes instead of 5"):
        close.check([], SAME)


@pytest.mark.parametrize("body", Body)
def test_requests(body: Body) -> None:
    """The photo is in every kind of request as it is, or as base64; the request says how long its body is."""
    photo = bench_photo()
    request = photo_request(ServerSpec("x", body=body, path="/here"), ServerAddress.parse("http://127.0.0.1:9"), photo)
    head, _, sent = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /here HTTP/1.1\r\n")
    assert b"Content-Length: %d" % len(sent) in head.split(b"\r\n")
    if body is Body.V2_JSON:
        assert json.loads(sent)["inputs"][0]["datatype"] == "BYTES"
    else:
        assert sent.count(photo) == 1


def test_photo() -> None:
    """The photo that is measured has about 100 kB."""
    assert 98_000 < len(bench_photo()) < 104_000
