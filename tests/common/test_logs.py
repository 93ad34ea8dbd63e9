"""The log: what a client sends cannot forge a line or steer a terminal."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.common.logs import LogFormat, configure_logging
from service.common.request_id import current_request_id

FORGED = "x\n2026-01-01 00:00:00,000 CRITICAL service: forged \x1b[31mred\x1b[0m \u202e\x9b \u2028 고양이"


@dataclass(frozen=True)
class Log:
    """A log in a format, and what it has written."""

    format: LogFormat
    stream: io.StringIO

    def lines(self) -> list[str]:
        """What was logged since the last call."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text.removesuffix("\n").split("\n")


@pytest.fixture(params=list(LogFormat))
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The log of this process until the test ends."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else those of pytest would be closed
    log = Log(request.param, io.StringIO())
    monkeypatch.setattr(sys, "stderr", log.stream)
    configure_logging("info", log.format, answers=False)
    yield log
    root.handlers[:] = handlers
    root.setLevel(level)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text())
def test_one_line(log: Log, text: str) -> None:
    """A record is one line of printable characters, whatever its text."""
    logging.getLogger("service").info("the field %s", text)

    [line] = log.lines()
    assert line.isprintable()


def test_names_are_readable(log: Log) -> None:
    """Control characters are written as Python writes them; letters of any language stay, in JSON when read."""
    logging.getLogger("service").warning("the field %s", FORGED)

    [line] = log.lines()
    if log.format is LogFormat.TEXT:
        assert " WARNING service: the field x\\n2026" in line
        assert line.endswith(r"\x1b[31mred\x1b[0m \u202e\x9b \u2028 고양이")
    else:
        assert json.loads(line)["message"] == f"the field {FORGED}"


def test_traceback(log: Log) -> None:
    """No line of a traceback begins as a record does, and none holds a control character."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("service").exception("failed")

    first, *rest = log.lines()
    assert all(line.isprintable() for line in (first, *rest))
    if log.format is LogFormat.TEXT:
        assert first.endswith(" ERROR service: failed")
        assert all(line.startswith("    ") for line in rest)
        assert any("ValueError: x" in line for line in rest)
    else:
        assert not rest
        assert "ValueError: x" in json.loads(first)["exception"]


@pytest.mark.parametrize("log", [LogFormat.JSON], indirect=True)
def test_json(log: Log) -> None:
    """An object has time, level, logger and message, and within a request its id."""
    token = current_request_id.set("order-7")
    logging.getLogger("service.rest").info("%d images", 3)
    current_request_id.reset(token)
    logging.getLogger("service.rest").debug("not logged")
    logging.getLogger("service.rest").info("after")

    within, after = map(json.loads, log.lines())
    assert within.pop("time")
    assert within == {"level": "INFO", "logger": "service.rest", "message": "3 images", "request_id": "order-7"}
    assert "request_id" not in after
