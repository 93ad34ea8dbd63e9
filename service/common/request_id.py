"""The id that each request carries through logs and replies, in both transports."""

import os
import re
from contextvars import ContextVar

_USABLE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

under_way: ContextVar[str] = ContextVar("under_way", default="")
"""The id of the request that this task works for, empty outside of one: for calls to other processes on its behalf."""


def request_id(given: str | None) -> str:
    """The caller's own id where it is short and plain enough for a log line and a header, else a new one."""
    return given if given and _USABLE.fullmatch(given) else os.urandom(16).hex()
