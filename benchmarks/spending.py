"""A measured server's side of a benchmark: it says its ports, then what it has spent whenever it is asked.

Each line on its standard input is answered by one line: CPU seconds of the process, of its event loop's thread, and of
decoding and resizing alone, and the times it gave up the processor.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping


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
