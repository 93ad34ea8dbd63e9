"""Errors as gRPC status codes, from the one table."""

import logging
import os
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import TABLE, BadRequest, Code, Overloaded, TopfiveError, drop_tracebacks

_SERVER_ID = os.urandom(8).hex()  # shows a refused client whether another server answers next

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def describe(error: Exception, identity: str) -> pb.Error:
    """The error for the client, with the details that it may not see only logged. Drops its tracebacks."""
    if isinstance(error, DecodeError):
        drop_tracebacks(error)
        error = BadRequest("the message is not one of this call: it cannot be parsed")
    if not isinstance(error, TopfiveError) or error.code is Code.INTERNAL:
        log.error("%s: unexpected error", identity, exc_info=error)
        code, detail = Code.INTERNAL, f"the server failed; its log has the cause under {identity}"
    else:
        code, detail = error.code, error.told
        log.log(error.translation.log_level, "%s: %s: %s", identity, code, error.detail)
    drop_tracebacks(error)
    row = TABLE[code]
    status: int = getattr(grpc.StatusCode, row.grpc).value[0]
    return pb.Error(code=code, detail=detail, status=status, retryable=row.retryable)


async def abort(context: Context, error: Exception, identity: str) -> NoReturn:
    """End the call with the status of `error`. Its code and the request's id go into the trailing metadata."""
    described = describe(error, identity)
    trailing = [("topfive-code", described.code), ("x-request-id", identity)]
    if isinstance(error, Overloaded):
        trailing.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))))
        trailing.append(("topfive-server", _SERVER_ID))
    status: grpc.StatusCode = getattr(grpc.StatusCode, TABLE[Code(described.code)].grpc)
    await context.abort(status, described.detail, tuple(trailing))
