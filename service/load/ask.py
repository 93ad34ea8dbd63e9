"""One request outside a measurement: what a server says of itself, and whether it answers at all."""

import asyncio
import http.client
import ssl
from contextlib import suppress
from dataclasses import dataclass

from service.load.http import Address
from service.load.line import LoadError

_START = "is the server running there?"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, lower-case headers and the whole body."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(address: Address, payload: bytes, timeout_s: float) -> Answer:
    """Send the whole request `payload` on a connection of its own. Raises LoadError where no answer comes."""
    return await asyncio.to_thread(_ask, address, payload, timeout_s)


async def get(address: Address, path: str, timeout_s: float) -> Answer:
    """The answer to GET `path`. Raises LoadError."""
    return await ask(address, f"GET {path} HTTP/1.1\r\nHost: {address.authority}\r\n\r\n".encode(), timeout_s)


def _ask(address: Address, payload: bytes, timeout_s: float) -> Answer:
    if address.tls:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address.host, address.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    where = f"http{'s' if address.tls else ''}://{address.authority}"
    try:
        connection.connect()
        assert connection.sock is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered already, and closed
            connection.sock.sendall(payload)
        response = http.client.HTTPResponse(connection.sock, method=payload.split(b" ", 1)[0].decode())
        response.begin()
        body = response.read()
    except ConnectionRefusedError as error:
        raise LoadError(f"{where} refuses connections; {_START}") from error
    except TimeoutError as error:
        raise LoadError(f"{where} did not answer within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"{where} gives no answer: {error or type(error).__name__}; {_START}") from error
    finally:
        connection.close()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
