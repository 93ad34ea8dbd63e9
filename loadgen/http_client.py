"""One request outside a measurement: whether a server answers at all, and what."""

import asyncio
import ssl
from dataclasses import dataclass

import httptools

from loadgen.connection import LoadError
from loadgen.http_connection import Address

_START = "is the server running there?"
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, lower-case headers and the whole body."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(address: Address, payload: bytes, timeout_s: float) -> Answer:
    """Send the whole request `payload` on a connection of its own. Raises LoadError where no answer comes."""
    where = f"http{'s' if address.tls else ''}://{address.authority}"
    try:
        async with asyncio.timeout(timeout_s):
            return await _asked(address, payload)
    except ConnectionRefusedError as error:
        raise LoadError(f"{where} refuses connections; {_START}") from error
    except TimeoutError as error:
        raise LoadError(f"{where} did not answer within {timeout_s:g} s") from error
    except (OSError, httptools.HttpParserError) as error:
        raise LoadError(f"{where} gives no answer: {error or type(error).__name__}; {_START}") from error


async def _asked(address: Address, payload: bytes) -> Answer:
    tls = ssl.create_default_context() if address.tls else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
    collected = _Collected()
    try:
        writer.write(payload)  # and no wait until all is sent: a server may answer before it has read all
        while not collected.complete and (data := await reader.read(_CHUNK_BYTES)):
            collected.feed(data)
    finally:
        writer.close()
    if not collected.complete and (collected.framed or not collected.status):
        raise ConnectionResetError("it ended the connection before the whole answer")
    return Answer(collected.status, collected.headers, bytes(collected.body))


class _Collected:
    """One answer as it comes; the announcements before it (1xx) are left out."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Some more of it. Raises HttpParserError."""
        self._parser.feed_data(data)

    @property
    def framed(self) -> bool:
        """Whether its head says where it ends."""
        return bool({"content-length", "transfer-encoding"} & self.headers.keys())

    def on_message_begin(self) -> None:
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = self.status >= 200
