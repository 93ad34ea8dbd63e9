"""The id that each request carries through logs and replies, in both transports."""

import os
import re
from contextvars import ContextVar

_USABLE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""The id of the request that the current task answers, empty outside of one."""


def begin_request(given: str | None) -> str:
    """The id of a request that begins, which becomes the current one.

    It is the caller's own where that is short and plain enough for a log line and a header, else a new one.
    """
    identity = given if given and _USABLE.fullmatch(given) else os.urandom(16).hex()
    current_request_id.set(identity)
    return identity
