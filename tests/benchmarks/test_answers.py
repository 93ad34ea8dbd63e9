"""What is sent to servers, and how their answers are read and compared."""

import json

import pytest

from benchmarks.answers import AnswerError, ExpectedAnswer, best_class
from benchmarks.requests import bench_photo, photo_request
from benchmarks.servers import Body, ServerSpec
from loadgen.http_connection import HttpAddress

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
    """The best class is read from the answer of each kind of server."""
    assert best_class(text.encode()) == (3, 0.5)


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '["x"]'])
def test_no_answer(text: str) -> None:
    """What holds no classes is refused."""
    with pytest.raises(AnswerError):
        best_class(text.encode())


def test_agreement() -> None:
    """A probability may be off by a twentieth, and the class by none."""
    ExpectedAnswer(b"photo", (3, 0.51)).check(LISTED.encode())
    for best in ((3, 0.54), (3, 0.46), (4, 0.5)):
        with pytest.raises(AnswerError, match="the best class is 3 with"):
            ExpectedAnswer(b"photo", best).check(LISTED.encode())


@pytest.mark.parametrize("body", Body)
def test_requests(body: Body) -> None:
    """The photo is in every kind of request as it is, or as base64; the request says how long its body is."""
    photo = bench_photo()
    request = photo_request(ServerSpec("x", body=body), HttpAddress.parse("http://127.0.0.1:9/here"), photo)
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
