"""How a server treats what is broken: its status, and whether good requests beside a broken one are answered."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.asking import ask
from benchmarks.server import Running

GOOD = 7
TRIES = 5
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Status of a file that is no photo and of half a photo (0: no answer); good answers of `GOOD` times `TRIES`."""

    no_photo: int
    truncated: int
    good: int


def behaviour(server: Running, photo: bytes) -> Behaviour:
    """Asked once each; then `TRIES` times one broken photo among `GOOD` good ones that are sent at once."""
    broken = photo[: len(photo) // 2]
    good = 0
    with ThreadPoolExecutor(GOOD + 1) as pool:
        for _ in range(TRIES):
            statuses = [pool.submit(_status, server, one) for one in [*[photo] * GOOD, broken]]
            good += sum(one.result() == http.HTTPStatus.OK for one in statuses[:GOOD])
    return Behaviour(_status(server, b"this is no photo " * 100), _status(server, broken), good)


def _status(server: Running, photo: bytes) -> int:
    try:
        return ask(server.addresses[0], server.subject, photo, _TIMEOUT_S)[0]
    except (OSError, http.client.HTTPException):
        return 0
