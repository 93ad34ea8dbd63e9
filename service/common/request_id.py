"""The id of a request in logs and replies, in REST and gRPC."""

import re
from contextvars import ContextVar
from random import getrandbits

_USABLE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""The id of the request that the current task answers. Empty outside of a request."""


def begin_request(given: str | None) -> str:
    """Sets and returns the id of a new request.

    The caller's id is kept if it is short and plain enough for a log line and a header; else a new one is made.
    """
    identity = given if given and _USABLE.fullmatch(given) else f"{getrandbits(128):032x}"
    current_request_id.set(identity)
    return identity
