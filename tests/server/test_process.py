"""The process of a server, whatever it serves."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import asyncio, gc, json, os, signal
from service.server.process import run_until_stopped

class Server:
    async def start(self):
        self.before = gc.get_freeze_count()

    async def load(self):
        self.loaded = [[number] for number in range(100_000)]
        asyncio.get_running_loop().call_later(0.05, self.tell)

    def tell(self):
        frozen = gc.get_freeze_count()
        print(json.dumps({"before": self.before, "frozen": frozen, "looked at": len(gc.get_objects())}), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self, hurry):
        pass

raise SystemExit(run_until_stopped(lambda fatal: Server(), "info"))
"""


def test_what_is_loaded_is_not_searched_for_garbage() -> None:
    """Once a server is loaded, a search for garbage passes over all that is there: it would stop every request."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)

    assert told["before"] == 0
    assert told["frozen"] > 100_000
    assert told["looked at"] < 10_000


FAILING = """
import threading
from service.common.thread_pool import ThreadPool
from service.server.process import run_until_stopped

class Server:
    async def start(self):
        ThreadPool(1, "left-open").run(threading.Event().wait)
        raise RuntimeError("a bug")

raise SystemExit(run_until_stopped(lambda fatal: Server(), "info"))
"""


def test_a_bug_ends_the_process() -> None:
    """A server that fails unexpectedly logs why and ends with status 1, although its threads are still at work."""
    ended = subprocess.run([sys.executable, "-c", FAILING], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "RuntimeError: a bug" in ended.stderr
    assert "left-open_0 did not return" in ended.stderr
