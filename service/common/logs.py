"""Formats the log. Text from a client can neither forge a record nor control a terminal."""

import json
import logging
from enum import StrEnum

from service.common.request_id import current_request_id

ANSWERS = "service.answers"
"""The logger of good answers, which is silent unless they are asked for."""


class LogFormat(StrEnum):
    """Formats of the log."""

    TEXT = "text"
    JSON = "json"


def configure_logging(level: str, log_format: LogFormat, *, answers: bool) -> None:
    """Write records of this level and above to standard error; with `answers` also a line for each good answer."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger(ANSWERS).setLevel(logging.INFO if answers else logging.WARNING)


class _TextFormatter(logging.Formatter):
    """A line that begins with the time; the lines of a traceback are indented, so that none looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"]
        if record.exc_info:
            lines += (f"    {line}" for line in self.formatException(record.exc_info).split("\n"))
        return "\n".join(map(_printable, lines))


class _JsonFormatter(logging.Formatter):
    """A JSON object in ASCII, which escapes every control character."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := current_request_id.get():
            line["request_id"] = identity
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _printable(text: str) -> str:
    r"""The text with `\n`, `\x1b` and the like in the place of characters that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
