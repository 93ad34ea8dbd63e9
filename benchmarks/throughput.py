"""What measurements share: how often threads do something in a second, and a server that is ready."""

import asyncio
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def per_second(work: Callable[[], object], threads: int, seconds: float) -> float:
    """How often `threads` threads together do `work` in a second; each does it at least once."""
    end = time.monotonic() + seconds

    def loop() -> int:
        work()
        done = 1
        while time.monotonic() < end:
            work()
            done += 1
        return done

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda _: loop(), range(threads)))
    return total / (time.monotonic() - began)


async def started(model: str, artifacts: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A ready `topfive serve` on free ports, and its REST port."""
    command = ["serve", "--models", model, "--artifacts", str(artifacts), "--port", "0", "--grpc-port", "0"]
    topfive = Path(sys.executable).with_name("topfive")
    process = await asyncio.create_subprocess_exec(topfive, *command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    port = 0
    async for line in process.stderr:
        if b"REST on" in line:
            port = int(line.partition(b"REST on http://")[2].split(b",")[0].rpartition(b":")[2])
        if line.rstrip().endswith(b"ready"):
            return process, port
    raise RuntimeError(f"the server did not start; is {model} exported?")
