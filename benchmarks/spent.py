"""How a server of this folder reports what it has spent: JSON on a port of its own."""

import asyncio
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds so far of the process, of its event loop's thread, and of decoding and resizing.

    `switches` counts how often the process gave up the processor.
    """

    cpu_s: float
    loop_s: float
    decode_s: float
    switches: int


async def serve_spent(port: int, decode_s: Callable[[], float] = lambda: 0.0) -> None:
    """Report on `port` until the process is ended; `decode_s` gives the seconds of decoding and resizing so far."""

    def report(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = Spent(time.process_time(), time.thread_time(), decode_s(), used.ru_nvcsw + used.ru_nivcsw)
        writer.write(json.dumps(asdict(spent)).encode())
        writer.close()

    async with await asyncio.start_server(report, "127.0.0.1", port) as server:
        await server.serve_forever()


async def read_spent(port: int) -> Spent:
    """What the server that reports on `port` has spent so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return Spent(**json.loads(await reader.read()))
    finally:
        writer.close()
