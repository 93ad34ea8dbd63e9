"""Checks whether a server is ready, for the health checks of containers: `python -m service.server.health_probe URL`.

It imports only what it needs, so that a check costs little.
"""

import http.client
import ssl
import sys
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 4.0
_USAGE = """usage: python -m service.server.health_probe URL [CERT KEY]
URL is such as http://127.0.0.1:8000/readyz, https://127.0.0.1:8000/readyz or grpc://127.0.0.1:8001
CERT and KEY are PEM files for a server that asks for the certificate of its clients"""


def probe(url: str, timeout_s: float = _TIMEOUT_S, client: tuple[str, str] | None = None) -> str | None:
    """Why the server at `url` is not ready, or None if it is.

    `http://` and `https://` want status 200; `grpc://HOST:PORT` wants SERVING of `grpc.health.v1`. `client` is a
    certificate and its key. The server's certificate is not verified, as Kubernetes does not: the probe asks by an
    address that the certificate seldom has, and sends nothing. Raises ValueError of other URLs.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc") or not parts.hostname or not parts.port:
        raise ValueError(f"{url!r} cannot be asked; {_USAGE}")
    if parts.scheme == "grpc":
        return _by_grpc(parts.netloc, timeout_s)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if client is not None:
            context.load_cert_chain(*client)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
    return _by_http(connection, parts.path or "/")


def _by_http(connection: http.client.HTTPConnection, path: str) -> str | None:
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
    if len(arguments) not in (1, 3):
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 2
    try:
        reason = probe(arguments[0], client=(arguments[1], arguments[2]) if arguments[1:] else None)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(f"{arguments[0]}: {reason or 'ready'}")  # noqa: T201
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
