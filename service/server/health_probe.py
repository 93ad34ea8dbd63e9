"""Checks whether a server is ready, for the health checks of containers: `python -m service.server.health_probe URL`.

It imports only what it needs, so that a check costs little.
"""

import http.client
import sys
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 4.0
_USAGE = "usage: python -m service.server.health_probe http://127.0.0.1:8000/readyz or grpc://127.0.0.1:8001"


def probe(url: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Why the server at `url` is not ready, or None if it is.

    `http://` expects status 200; `grpc://HOST:PORT` expects SERVING of `grpc.health.v1`. Raises ValueError for other
    URLs.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "grpc") or not parts.hostname or not parts.port:
        raise ValueError(f"{url!r} cannot be asked; {_USAGE}")
    if parts.scheme == "grpc":
        return _by_grpc(parts.netloc, timeout_s)
    return _by_http(parts.hostname, parts.port, parts.path or "/", timeout_s)


def _by_http(host: str, port: int, path: str, timeout_s: float) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        said = response.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if response.status == http.HTTPStatus.OK else f"{response.status}: {said}"


def _by_grpc(address: str, timeout_s: float) -> str | None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as http.client does
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            call: Any = error  # in grpc the error is also the call
            return f"no answer: {call.details()}"
    serving = health_pb2.HealthCheckResponse
    return None if reply.status == serving.SERVING else str(serving.ServingStatus.Name(reply.status))


def main(arguments: list[str]) -> int:
    """Print one line. Returns 0 if the server is ready, 1 if not, 2 if the arguments are wrong."""
    if len(arguments) != 1:
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 2
    try:
        reason = probe(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(f"{arguments[0]}: {reason or 'ready'}")  # noqa: T201
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
