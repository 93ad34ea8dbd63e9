"""One HTTP request: its limits of size, time and redirects, and what is said where they are passed."""

import pytest

from service.common.errors import TooLarge
from service.common.http_client import HttpAnswer, fetch
from tests.download_host import Answer, Host, not_http, reply, whole

BODY = bytes(1000)
MOVED = reply(status=302, Location="/models/photo", Content_Length=0)
AWAY = reply(status=302, Location="/models/loop", Content_Length=0)


def test_answers(host: Host) -> None:
    """A body of exactly the limit is whole; an error of the host is an answer; a redirect is followed."""
    photo, moved = host.serve("photo", whole(BODY)), host.serve("moved", MOVED)

    assert fetch(photo, 5, len(BODY)) == fetch(moved, 5, len(BODY)) == HttpAnswer(200, "OK", BODY)
    assert fetch(f"{host.url}none", 5, 1000).status == 404


def test_endless_redirects(host: Host) -> None:
    """Redirects end, with the status of the last one."""
    assert fetch(host.serve("loop", AWAY), 5, 1000).status == 302
    assert len(host.asked) <= 11


def test_redirected_post(host: Host) -> None:
    """A body and its headers go to no other address than the named one."""
    answer = fetch(host.serve("moved", MOVED), 5, 1000, b"photo", {"Authorization": "Bearer secret"})

    assert answer.status == 302
    assert host.asked == ["/models/moved"]


@pytest.mark.parametrize("answer", [whole(BODY), reply(BODY)], ids=["declared", "not declared"])
def test_too_large(host: Host, answer: Answer) -> None:
    """A body over the limit is not taken, with a declared length and without one."""
    with pytest.raises(TooLarge, match="more than 999 bytes"):
        fetch(host.serve("photo", answer), 5, 999)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(BODY[:10], Content_Length=len(BODY)), "broke off after 10 of 1,000 bytes"),
        (reply(b"ffff\r\nonly this", Transfer_Encoding="chunked"), "no HTTP answer"),
        (reply(BODY, Content_Length="much"), "no HTTP answer"),
        (not_http, "no HTTP answer"),
    ],
    ids=["cut off", "cut off in a chunk", "no length", "another protocol"],
)
def test_broken_answers(host: Host, answer: Answer, reason: str) -> None:
    """An answer that is not whole, or none of HTTP, is an error that says so."""
    with pytest.raises(OSError, match=reason):
        fetch(host.serve("photo", answer), 5, 1000)


def test_time(host: Host) -> None:
    """An answer that has not come within the time is not waited for, even if some of it comes all the time."""

    def drip(request: object) -> None:
        reply(Content_Length=1_000_000)(request)  # type: ignore[arg-type]
        while True:  # until the client leaves
            request.wfile.write(b"x")  # type: ignore[attr-defined]

    with pytest.raises(OSError, match=r"no whole answer within 0\.2 s"):
        fetch(host.serve("photo", drip), 0.2, 10_000_000)


@pytest.mark.parametrize("url", ["http://", "http://[x/", "http://127.0.0.1:x/", "http://127.0.0.1/a b"])
def test_no_address(url: str) -> None:
    """What is no address is an error as any other."""
    with pytest.raises(OSError, match=r"no connection|no HTTP answer"):
        fetch(url, 5, 1000)
