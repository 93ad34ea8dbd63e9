"""`topfive classify` in a process of its own over a scripted engine.

Called as `python -m tests.bulk_process ARTIFACTS OUT LOG N IN`. Every image that the engine runs adds its brightness
to LOG. After N images the engine waits for the end of standard input before each batch.
"""

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from service.common.settings import Settings
from service.common.types import Probabilities, Rows
from service.offline.classify_command import Job, classify
from service.offline.session import run
from service.offline.sources import find
from service.server.app import Core
from tests.fakes import FakeEngine, opener


class LoggingEngine(FakeEngine):
    """Writes down what it runs, and waits after so many images."""

    def __init__(self, log: Path, wait_after: int) -> None:
        super().__init__(max_batch=4)
        self._log = log
        self._left = wait_after

    def run(self, rows: Rows) -> Probabilities:
        if self._left <= 0:
            sys.stdin.read()
        self._left -= len(rows)
        probabilities = super().run(rows)
        with self._log.open("a") as file:
            file.writelines(f"{row.argmax()}\n" for row in probabilities)
        return probabilities


def main(artifacts: str, out: str, log: str, wait_after: str, source: str) -> int:
    """The exit status of the command."""
    settings = Settings(models=("tiny",), artifacts=Path(artifacts), cpus=2)
    engine = LoggingEngine(Path(log), int(wait_after))
    job = Job("tiny", find([source]), Path(out), 3, 1)

    async def work(stop: asyncio.Event) -> None:
        await classify(settings, job, errors, stop, lambda own: Core(own, opener=opener(engine)))

    errors = Console(stderr=True)
    return run(work, errors)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
