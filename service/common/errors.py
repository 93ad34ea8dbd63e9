"""The table of errors: the name of each, and its HTTP and gRPC status.

An error is raised where it is detected, and translated once, at the edge.
"""

import logging
import re
from dataclasses import dataclass
from enum import StrEnum

_PATH = re.compile(r"(?<![^\s'\"(=])/(?:[^\s'\",;:()/]+/)+([^\s'\",;:()/]+)")


class Code(StrEnum):
    """Names of errors as clients see them, the same in REST and gRPC."""

    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    MODEL_NOT_FOUND = "model_not_found"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    BAD_IMAGE = "bad_image"
    OUT_OF_MEMORY = "out_of_memory"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    SHUTTING_DOWN = "shutting_down"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"
    UNIMPLEMENTED = "unimplemented"


@dataclass(frozen=True, slots=True)
class Translation:
    """How REST, gRPC and the log report one code. `grpc` is a status name; `retryable`: may be sent again."""

    http: int
    grpc: str
    title: str
    retryable: bool
    log_level: int


TABLE: dict[Code, Translation] = {
    Code.BAD_REQUEST: Translation(400, "INVALID_ARGUMENT", "Bad request", False, logging.INFO),
    Code.UNAUTHENTICATED: Translation(401, "UNAUTHENTICATED", "Unauthenticated", False, logging.INFO),
    Code.PERMISSION_DENIED: Translation(403, "PERMISSION_DENIED", "Permission denied", False, logging.INFO),
    Code.MODEL_NOT_FOUND: Translation(404, "NOT_FOUND", "Model not found", False, logging.INFO),
    Code.TOO_LARGE: Translation(413, "INVALID_ARGUMENT", "Image too large", False, logging.INFO),
    Code.UNSUPPORTED_MEDIA_TYPE: Translation(415, "INVALID_ARGUMENT", "Unsupported media type", False, logging.INFO),
    Code.BAD_IMAGE: Translation(422, "INVALID_ARGUMENT", "Not a readable image", False, logging.INFO),
    Code.OUT_OF_MEMORY: Translation(503, "UNAVAILABLE", "Out of memory", True, logging.ERROR),
    Code.OVERLOADED: Translation(429, "RESOURCE_EXHAUSTED", "Overloaded", True, logging.DEBUG),
    Code.NOT_READY: Translation(503, "UNAVAILABLE", "Not ready", True, logging.WARNING),
    Code.SHUTTING_DOWN: Translation(503, "UNAVAILABLE", "Shutting down", True, logging.INFO),
    Code.DEADLINE_EXCEEDED: Translation(504, "DEADLINE_EXCEEDED", "Deadline exceeded", True, logging.INFO),
    Code.INTERNAL: Translation(500, "INTERNAL", "Internal error", False, logging.ERROR),
    Code.UNIMPLEMENTED: Translation(501, "UNIMPLEMENTED", "Not implemented", False, logging.INFO),
}


class TopfiveError(Exception):
    """Base class of all errors in the table. `detail` is written for the client."""

    code = Code.INTERNAL
    default_detail = ""

    def __init__(self, detail: str = "") -> None:
        self.detail = detail or self.default_detail
        super().__init__(self.detail)

    @property
    def translation(self) -> Translation:
        return TABLE[self.code]

    @property
    def told(self) -> str:
        """The detail for clients: of a path on this machine, which errors of models may have, only the last name."""
        about_models = self.code in (Code.NOT_READY, Code.MODEL_NOT_FOUND)
        return _PATH.sub(r".../\1", self.detail) if about_models else self.detail


class BadRequest(TopfiveError):
    """The request itself is wrong. The detail shows a valid one."""

    code = Code.BAD_REQUEST


class Unauthenticated(TopfiveError):
    """The request has no API key, or one that is not known."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(TopfiveError):
    """The API key does not have the scope of the request."""

    code = Code.PERMISSION_DENIED


class ModelNotFound(TopfiveError):
    """No such model (the detail has the nearest names), or one not exported (the detail has the command)."""

    code = Code.MODEL_NOT_FOUND


class TooLarge(TopfiveError):
    """More bytes or pixels than the limit; found before anything is decoded."""

    code = Code.TOO_LARGE


class UnsupportedMediaType(TopfiveError):
    """The body has a Content-Encoding, such as gzip; the server reads bodies as they are."""

    code = Code.UNSUPPORTED_MEDIA_TYPE


class BadImage(TopfiveError):
    """Not an image, a truncated image, or a format that is not supported."""

    code = Code.BAD_IMAGE


class OutOfMemory(TopfiveError):
    """The memory of the server does not suffice to decode the image now."""

    code = Code.OUT_OF_MEMORY
    default_detail = "the server has too little memory to decode the image now; send a smaller copy, or try again"


class Overloaded(TopfiveError):
    """The server is at capacity, or the answer would be late. `retry_after_s` is when to try again, in seconds."""

    code = Code.OVERLOADED

    def __init__(self, retry_after_s: float, reason: str = "the server is at capacity") -> None:
        super().__init__(f"{reason}; try again in {max(retry_after_s, 0.1):.1f} s")
        self.retry_after_s = retry_after_s


class NotReady(TopfiveError):
    """The model cannot answer now: it failed to load, or its batches fail."""

    code = Code.NOT_READY


class ShuttingDown(TopfiveError):
    """The server is stopping and takes no more work."""

    code = Code.SHUTTING_DOWN
    default_detail = "the server is shutting down; send the request to another one"


class DeadlineExceeded(TopfiveError):
    """The deadline of the caller or the server passed before the answer."""

    code = Code.DEADLINE_EXCEEDED
    default_detail = "no answer within the time allowed; the image was not classified"


class Unimplemented(TopfiveError):
    """A protocol has this request, and this server does not answer it."""

    code = Code.UNIMPLEMENTED


class EngineError(TopfiveError):
    """The engine failed on this batch or row. The client sees no more than that; the cause is chained for the log."""

    code = Code.INTERNAL


_KINDS = {kind.code: kind for kind in TopfiveError.__subclasses__()}


def error_of(code: str, detail: str, retry_after_s: float = 1.0) -> TopfiveError:
    """The error for a code received from another server. An unknown code gives EngineError."""
    if code == Code.OVERLOADED:
        error = Overloaded(retry_after_s)
        error.detail = detail
        return error
    return _KINDS[Code(code)](detail) if code in tuple(Code) else EngineError(f"{code}: {detail}")


def drop_tracebacks(error: BaseException | None) -> None:
    """Remove the tracebacks of an error and of its causes: their frames and the error keep each other, and an image."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
