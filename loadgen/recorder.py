"""Keeps what happened to every request, cheaply; figures are made of it afterwards."""

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen.connection import OK, Outcome
from loadgen.results import Group, Latency, Server, Times, Window

_STEPS = {"queue": "queue", "input": "decode", "inference": "inference", "total": "total"}
"""What Server-Timing of this project's API calls them."""


class Recorder:
    """Requests in the order of their ends. Times are seconds of one clock, whichever it is.

    `sizes` are the bytes of each request that can be sent, by its index, `groups` the names of what each is counted
    with.
    """

    def __init__(self, sizes: Sequence[int], groups: Sequence[str]) -> None:
        self.sent = 0
        self.received = 0
        self._sizes = sizes
        self._groups = groups
        self._began = array("d")
        self._ended = array("d")
        self._kind = array("H")
        self._index = array("L")
        self._kinds = {OK: 0}
        self._examples: dict[str, str] = {}
        self._steps = {name: array("d") for name in _STEPS}
        self._late = array("d")
        self._due = array("d")
        self.failed = 0

    def note(self, index: int, began: float, ended: float, outcome: Outcome) -> None:
        """A request has ended."""
        self._began.append(began)
        self._ended.append(ended)
        self._index.append(index)
        self.sent += self._sizes[index]
        self.received += outcome.received
        failure = outcome.failure
        self.failed += failure != OK
        if failure not in self._kinds:
            self._kinds[failure] = len(self._kinds)
            self._examples[failure] = outcome.said
        self._kind.append(self._kinds[failure])
        steps = _steps(outcome.timing) if outcome.timing else {}
        for name, said in _STEPS.items():
            self._steps[name].append(steps.get(said, 0.0))

    def note_late(self, due: float, late_s: float) -> None:
        """A request that was due then could be sent only so much later."""
        self._due.append(due)
        self._late.append(late_s)

    def window(self, begin: float, end: float) -> Window:
        """The good answers that came after `begin` and until `end`."""
        began, ended, kind, _ = self._arrays()
        piece = slice(*np.searchsorted(ended, (begin, end), side="right"))  # they are in order
        began, ended, chosen = began[piece], ended[piece], kind[piece] == 0
        seconds = end - begin
        count = int(chosen.sum())
        rate = count / seconds if seconds > 0 else 0.0
        return Window(seconds, count, rate, Latency.of((ended - began)[chosen]))

    def latency(self, begin: float, end: float) -> Latency:
        """Of the good answers to requests that began within, whenever they came."""
        began, ended, _, _ = self._arrays()
        return Latency.of((ended - began)[self._good(begin, end)])

    def errors(self, begin: float, end: float) -> dict[str, int]:
        """Failed requests that were under way within, by their kind, most frequent first."""
        began, ended, kind, _ = self._arrays()
        names = list(self._kinds)
        counts = Counter(kind[(kind > 0) & (ended >= begin) & (began < end)].tolist())
        return {names[number]: count for number, count in counts.most_common()}

    def example(self, failure: str) -> str:
        """What the server said with the first failure of that kind."""
        return self._examples.get(failure, "")

    def grouped(self, begin: float, end: float) -> tuple[Group, ...]:
        """The good answers to requests that began within, by the size of their images."""
        began, ended, _, index = self._arrays()
        good = self._good(begin, end)
        found = []
        for name in dict.fromkeys(self._groups):
            members = [number for number, group in enumerate(self._groups) if group == name]
            chosen = good & np.isin(index, members)
            found.append(Group(name, len(members), int(chosen.sum()), Latency.of((ended - began)[chosen])))
        return tuple(found)

    def server(self, begin: float, end: float) -> Server | None:
        """The mean of what the server said of its steps, None where it said nothing."""
        good = self._good(begin, end)
        columns = {name: np.frombuffer(column, np.float64)[good] for name, column in self._steps.items()}
        if not any(column.any() for column in columns.values()):
            return None
        return Server(**{name: float(column.mean()) for name, column in columns.items()})

    def late(self, begin: float, end: float) -> Times:
        """By how many seconds each request that was due within was late."""
        due = np.array(self._due)
        return np.array(self._late)[(due >= begin) & (due < end)]

    def _good(self, begin: float, end: float) -> NDArray[np.bool_]:
        began, _, kind, _ = self._arrays()
        good: NDArray[np.bool_] = (kind == 0) & (began >= begin) & (began < end)
        return good

    def _arrays(self) -> tuple[Times, Times, NDArray[np.uint16], NDArray[np.uint64]]:
        """Views: let go of them before the next request is noted, for an array that lends its memory cannot grow."""
        return (
            np.frombuffer(self._began, np.float64),
            np.frombuffer(self._ended, np.float64),
            np.frombuffer(self._kind, np.uint16),
            np.frombuffer(self._index, np.uint64),
        )


def _steps(timing: bytes) -> dict[str, float]:
    """Milliseconds by name in a value of Server-Timing, which is `name;dur=1.5, ...`; other entries are left out."""
    steps = {}
    for entry in timing.decode("latin-1").split(","):
        name, _, parameters = entry.strip().partition(";")
        for parameter in parameters.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key.lower() == "dur":
                try:
                    steps[name] = float(value.strip('"'))
                except ValueError:
                    continue
    return steps
