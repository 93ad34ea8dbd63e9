"""The id that each request carries through logs and replies, in both transports."""

import re
import uuid

_USABLE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def request_id(given: str | None) -> str:
    """The caller's own id where it is short and plain enough for a log line and a header, else a new one."""
    return given if given and _USABLE.fullmatch(given) else uuid.uuid4().hex
