"""Servers of this folder that are measured: how one is started, and how it says its ports, then what it has spent.

Each line on its standard input is answered by one line: CPU seconds of the process, of its event loop's thread, and of
decoding and resizing alone, and the times it gave up the processor.
"""

import asyncio
import json
import resource
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager


@asynccontextmanager
async def started(module: str, *arguments: str) -> AsyncIterator[tuple[Process, dict[str, int]]]:
    """One of them in a process of its own, and its ports; at the end of the context it ends. Raises RuntimeError."""
    command = ["-m", f"benchmarks.{module}", *arguments]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    if not (ports := await process.stdout.readline()):
        raise RuntimeError(f"benchmarks.{module} did not start; is the model exported to that folder?")
    try:
        yield process, json.loads(ports)
    finally:
        process.stdin.close()
        await process.wait()


async def tell(ports: Mapping[str, int], decode_s: Callable[[], float] = lambda: 0.0) -> None:
    """Say `ports`, then answer until the standard input ends. `decode_s` gives the seconds of decoding so far."""
    over = asyncio.Event()

    def asked() -> None:
        if not sys.stdin.readline():
            over.set()
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures = {"cpu_s": time.process_time(), "loop_s": time.thread_time(), "decode_s": decode_s()}
        _say({**figures, "switches": float(used.ru_nvcsw + used.ru_nivcsw)})

    _say(ports)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), asked)
    await over.wait()
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


def _say(figures: Mapping[str, float]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
