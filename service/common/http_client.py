"""Sends one HTTP request with the standard library, within limits of time, size and redirects."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from service.common.errors import TooLarge

_CHUNK_BYTES = 64 << 10
_AGENT = {"User-Agent": "topfive"}  # some hosts refuse the name of urllib


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The status of an answer with its words, and the body."""

    status: int
    reason: str
    body: bytes


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer as any other: a body and an API key go only to the address that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(
    url: str, timeout_s: float, max_bytes: int, body: bytes | None = None, headers: Mapping[str, str] = _AGENT
) -> HttpAnswer:
    """The answer to GET, or to POST with a `body`, whatever its status. GET follows at most ten redirects.

    Raises TooLarge if the answer has more than `max_bytes`, and OSError with the reason if there is no whole answer.
    """
    deadline = time.monotonic() + timeout_s
    try:
        opener = build_opener() if body is None else build_opener(_NoRedirect)
        try:
            response: Any = opener.open(Request(url, body, dict(headers)), timeout=timeout_s)
        except HTTPError as error:
            response = error  # an answer too
        with response:
            reason = str(response.reason).partition("\n")[0]  # urllib says more of endless redirects
            return HttpAnswer(response.status, reason, _read(response, deadline, max_bytes))
    except URLError as error:
        raise OSError(f"no connection: {getattr(error.reason, 'strerror', None) or error.reason}") from error
    except TimeoutError as error:
        raise OSError(f"no whole answer within {timeout_s:g} s") from error
    except (HTTPException, OSError, ValueError) as error:
        raise OSError(f"no HTTP answer: {error or type(error).__name__}") from error


def _read(response: Any, deadline: float, max_bytes: int) -> bytes:
    """The body. Raises TimeoutError after the deadline, and as `fetch` does."""
    content, declared = bytearray(), int(response.headers.get("Content-Length") or 0)
    while declared <= max_bytes and len(content) <= max_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            if len(content) < declared:
                raise HTTPException(f"it broke off after {len(content):,} of {declared:,} bytes")
            return bytes(content)
        content += chunk
    raise TooLarge(f"it has more than {max_bytes:,} bytes, which is the limit")
