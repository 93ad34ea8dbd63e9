"""The one table of errors: what each is called, and how REST and gRPC say it.

Raised where detected, translated once at the edge.

TopfiveError
  BadRequest         the request itself is wrong: no image, top_k out of range, unreadable header
  ModelNotFound      no such model, or one that is not exported
  TooLarge           more bytes or more pixels than the server takes
  BadImage           the bytes are not an image that can be decoded whole
  Overloaded         no place left; carries `retry_after_s`
  NotReady           the model cannot be loaded, or its engine has failed for good
  ShuttingDown       the server is stopping
  DeadlineExceeded   no answer within the time the caller gave
  EngineError        the engine failed; the cause goes to the log, never to the client
"""

import logging
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Names of errors as clients see them; the same in both transports."""

    BAD_REQUEST = "bad_request"
    MODEL_NOT_FOUND = "model_not_found"
    TOO_LARGE = "too_large"
    BAD_IMAGE = "bad_image"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    SHUTTING_DOWN = "shutting_down"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Translation:
    """How one code is said: HTTP status, gRPC status by name, may the same request be sent again, log level."""

    http: int
    grpc: str
    title: str
    retryable: bool
    log_level: int


TABLE: dict[Code, Translation] = {
    Code.BAD_REQUEST: Translation(400, "INVALID_ARGUMENT", "Bad request", False, logging.INFO),
    Code.MODEL_NOT_FOUND: Translation(404, "NOT_FOUND", "Model not found", False, logging.INFO),
    Code.TOO_LARGE: Translation(413, "INVALID_ARGUMENT", "Image too large", False, logging.INFO),
    Code.BAD_IMAGE: Translation(422, "INVALID_ARGUMENT", "Not a readable image", False, logging.INFO),
    Code.OVERLOADED: Translation(429, "RESOURCE_EXHAUSTED", "Overloaded", True, logging.INFO),
    Code.NOT_READY: Translation(503, "UNAVAILABLE", "Not ready", True, logging.WARNING),
    Code.SHUTTING_DOWN: Translation(503, "UNAVAILABLE", "Shutting down", True, logging.INFO),
    Code.DEADLINE_EXCEEDED: Translation(504, "DEADLINE_EXCEEDED", "Deadline exceeded", True, logging.INFO),
    Code.INTERNAL: Translation(500, "INTERNAL", "Internal error", False, logging.ERROR),
}


class TopfiveError(Exception):
    """An error with a place in the table; `detail` is written for the client."""

    code = Code.INTERNAL

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def translation(self) -> Translation:
        return TABLE[self.code]


class BadRequest(TopfiveError):
    """The request itself is wrong; the detail shows a right one."""

    code = Code.BAD_REQUEST


class ModelNotFound(TopfiveError):
    """No such model (the detail has the nearest names), or one not exported (the detail has the command)."""

    code = Code.MODEL_NOT_FOUND


class TooLarge(TopfiveError):
    """More bytes or pixels than the limit; found before anything is decoded."""

    code = Code.TOO_LARGE


class BadImage(TopfiveError):
    """Not an image, a truncated one, or of a kind that is not served."""

    code = Code.BAD_IMAGE


class Overloaded(TopfiveError):
    """No place is free, or no time. `retry_after_s` is when the present queue should have drained, in seconds."""

    code = Code.OVERLOADED

    def __init__(self, retry_after_s: float, reason: str = "the server is at capacity") -> None:
        super().__init__(f"{reason}; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class NotReady(TopfiveError):
    """The model cannot answer now: it failed to load, or its batcher is broken."""

    code = Code.NOT_READY


class ShuttingDown(TopfiveError):
    """The server is stopping and takes no more work."""

    code = Code.SHUTTING_DOWN

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request to another one")


class DeadlineExceeded(TopfiveError):
    """The caller's time, or the server's own limit, ran out before the answer."""

    code = Code.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__("no answer within the time allowed; the image was not classified")


class EngineError(TopfiveError):
    """The engine failed on this batch or row. The client sees only that it did; the cause is chained for the log."""

    code = Code.INTERNAL


_PLAIN: dict[Code, type[TopfiveError]] = {
    kind.code: kind for kind in (BadRequest, ModelNotFound, TooLarge, BadImage, NotReady, EngineError)
}
_RETRY_S = 1.0


def error_of(code: str, detail: str, retry_after_s: float = _RETRY_S) -> TopfiveError:
    """The error that this code names, with these words; a code that this version does not know is the engine's."""
    error: TopfiveError
    if code == Code.OVERLOADED:
        error = Overloaded(retry_after_s)
    elif code == Code.SHUTTING_DOWN:
        error = ShuttingDown()
    elif code == Code.DEADLINE_EXCEEDED:
        error = DeadlineExceeded()
    else:
        known = code in tuple(Code)
        error = _PLAIN[Code(code)](detail) if known else EngineError(f"{code}: {detail}")
        return error
    error.detail = detail
    return error
