"""Errors of an inference server as errors of this service: the inverse of `service.rpc.errors`, from the one table."""

import grpc

from service.common.errors import DeadlineExceeded, EngineError, NotReady, TooLarge, TopfiveError, error_of

_RETRY_S = 1.0


class Disconnected(NotReady):
    """The connection to an inference server was refused or broke; whether the server saw the call is not known."""


def translated(error: grpc.aio.AioRpcError, address: str) -> TopfiveError:
    """The error that a call to the server at `address` ended with.

    Without the trailing metadata of the service it is one of the connection: Disconnected where it broke.
    """
    trailing = {str(key): value for key, value in error.trailing_metadata() or ()}
    details = error.details() or "no reason given"
    if code := trailing.get("topfive-code"):
        pushback_ms = str(trailing.get("grpc-retry-pushback-ms", ""))
        retry_after_s = int(pushback_ms) / 1000 if pushback_ms.isdecimal() else _RETRY_S
        return error_of(str(code), details, retry_after_s)
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded()
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # CANCELLED: by a server that ends at once
            return Disconnected(f"the inference server at {address} cannot be reached: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # by the limit of one message
            return TooLarge(f"the inference server at {address} does not take the image: {details}")
        case status:
            return EngineError(f"the inference server at {address} failed with {status.name}: {details}")
