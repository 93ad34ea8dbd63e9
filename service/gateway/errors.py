"""Converts errors of an inference server to errors of this service: the inverse of `service.rpc.errors`."""

import grpc

from service.common.errors import Code, DeadlineExceeded, EngineError, NotReady, TooLarge, TopfiveError, error_of

_RETRY_S = 1.0


def translated(error: grpc.aio.AioRpcError) -> TopfiveError:
    """The error by the code in the trailing metadata. Without one, by the gRPC status: the connection failed."""
    trailing = {str(key): value for key, value in error.trailing_metadata() or ()}
    details = error.details() or "no reason given"
    if (code := trailing.get("topfive-code")) in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        return NotReady(f"an inference server does not let the gateway in ({details}); see --replica-api-key-file")
    if code:
        pushback_ms = str(trailing.get("grpc-retry-pushback-ms", ""))
        retry_after_s = int(pushback_ms) / 1000 if pushback_ms.isdecimal() else _RETRY_S
        return error_of(str(code), details, retry_after_s)
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded()
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # CANCELLED: by a server that ends at once
            return NotReady(f"the connection to an inference server was lost: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # the message exceeds the server's limit
            return TooLarge(f"the inference server does not take the image: {details}")
        case status:
            return EngineError(f"the inference server failed with {status.name}: {details}")


def refusing_server(error: TopfiveError) -> str | None:
    """The id of the server that refused the call for lack of capacity, or None if it is not known."""
    cause = error.__cause__
    trailing = cause.trailing_metadata() if isinstance(cause, grpc.aio.AioRpcError) else None
    return next((str(value) for key, value in trailing or () if key == "topfive-server"), None)
