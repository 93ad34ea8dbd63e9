"""Runs `topfive` in the process of a test, with real or fake engines."""

import csv
import os
import signal
from collections import Counter
from pathlib import Path

from click.testing import CliRunner, Result

from service.cli.main import main
from service.common.types import Probabilities, Rows
from tests.fakes import FakeEngine, opener


class SignallingEngine(FakeEngine):
    """Writes the class of each image that it runs to `log`, and sends its own process a signal after some of them."""

    def __init__(self, log: Path, number: int = signal.SIGTERM, after: int = 1_000_000) -> None:
        super().__init__(max_batch=4)
        self.log = log
        self._number = number
        self._left = after

    def run(self, rows: Rows) -> Probabilities:
        if self._left <= 0:
            self._left = 1_000_000
            os.kill(os.getpid(), self._number)
        self._left -= len(rows)
        probabilities = super().run(rows)
        with self.log.open("a") as file:
            file.writelines(f"{row.argmax()}\n" for row in probabilities)
        return probabilities

    def ran(self) -> Counter[int]:
        """The number of images of each class in the log, over all engines that wrote it."""
        return Counter(int(line) for line in self.log.read_text().split())


def topfive(*words: object, columns: int = 100, engine: FakeEngine | None = None, obj: object = None) -> Result:
    """Run the command in a terminal of that width; `engine`, if given, runs the models."""
    if engine is not None:
        obj = opener(engine)
    return CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": str(columns)}, obj=obj)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
