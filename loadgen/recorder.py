"""Records every request at little cost; results are computed from the records afterwards."""

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen.connection import OK, RequestResult
from loadgen.results import LatencySummary, Seconds, ServerTiming, SizeGroup, Window

_STEPS = {"queue": "queue", "input": "decode", "inference": "inference", "total": "total"}
"""The fields of `ServerTiming`, and their names in the header Server-Timing of topfive."""


class Recorder:
    """The ended requests, in the order of their ends. Times are seconds of one clock.

    `sizes[image]` is the size of the request with that image in bytes, `groups[image]` the name of its size group.
    """

    def __init__(self, sizes: Sequence[int], groups: Sequence[str]) -> None:
        self.sent = 0
        self.received = 0
        self.failed = 0
        self._sizes = sizes
        self._groups = groups
        self._started = array("d")
        self._ended = array("d")
        self._image = array("L")
        self._failure = array("H")  # an index of _failures
        self._failures = {OK: 0}
        self._examples: dict[str, str] = {}
        self._steps = {name: array("d") for name in _STEPS}
        self._delay = array("d")
        self._due = array("d")

    def record(self, image: int, started: float, ended: float, result: RequestResult) -> None:
        self._started.append(started)
        self._ended.append(ended)
        self._image.append(image)
        self.sent += self._sizes[image]
        self.received += result.received
        failure = result.failure
        self.failed += failure != OK
        if failure not in self._failures:
            self._failures[failure] = len(self._failures)
            self._examples[failure] = result.text
        self._failure.append(self._failures[failure])
        steps = _parse_timing(result.timing) if result.timing else {}
        for name, header_name in _STEPS.items():
            self._steps[name].append(steps.get(header_name, 0.0))

    def record_delay(self, due: float, delay_s: float) -> None:
        """Record how late the generator sent the request that was due at `due`."""
        self._due.append(due)
        self._delay.append(delay_s)

    def window(self, begin: float, end: float) -> Window:
        """The successful responses that came after `begin` and until `end`."""
        started, ended, failure, _ = self._arrays()
        part = slice(*np.searchsorted(ended, (begin, end), side="right"))  # they are in order
        started, ended, good = started[part], ended[part], failure[part] == 0
        seconds = end - begin
        count = int(good.sum())
        rate = count / seconds if seconds > 0 else 0.0
        return Window(seconds, count, rate, LatencySummary.of((ended - started)[good]))

    def latency(self, begin: float, end: float) -> LatencySummary:
        """The latency of the successful requests that started in the period."""
        started, ended, _, _ = self._arrays()
        return LatencySummary.of((ended - started)[self._good(begin, end)])

    def errors(self, begin: float, end: float) -> dict[str, int]:
        """Counts of the failed requests that were in flight in the period, by failure, most frequent first."""
        started, ended, failure, _ = self._arrays()
        names = list(self._failures)
        counts = Counter(failure[(failure > 0) & (ended >= begin) & (started < end)].tolist())
        return {names[number]: count for number, count in counts.most_common()}

    def example(self, failure: str) -> str:
        """The text of the first result with that failure."""
        return self._examples.get(failure, "")

    def groups(self, begin: float, end: float) -> tuple[SizeGroup, ...]:
        """The successful requests that started in the period, by the size of their images."""
        started, ended, _, image = self._arrays()
        good = self._good(begin, end)
        groups = []
        for name in dict.fromkeys(self._groups):
            members = [number for number, group in enumerate(self._groups) if group == name]
            chosen = good & np.isin(image, members)
            latency = LatencySummary.of((ended - started)[chosen])
            groups.append(SizeGroup(name, len(members), int(chosen.sum()), latency))
        return tuple(groups)

    def server_timing(self, begin: float, end: float) -> ServerTiming | None:
        """The mean time of each server step, over the successful requests that started in the period.

        Returns None if no response reports times.
        """
        good = self._good(begin, end)
        columns = {name: np.frombuffer(column, np.float64)[good] for name, column in self._steps.items()}
        if not any(column.any() for column in columns.values()):
            return None
        return ServerTiming(**{name: float(column.mean()) for name, column in columns.items()})

    def delays(self, begin: float, end: float) -> Seconds:
        """How late the generator sent each request that was due in the period."""
        due = np.array(self._due)
        return np.array(self._delay)[(due >= begin) & (due < end)]

    def _good(self, begin: float, end: float) -> NDArray[np.bool_]:
        started, _, failure, _ = self._arrays()
        good: NDArray[np.bool_] = (failure == 0) & (started >= begin) & (started < end)
        return good

    def _arrays(self) -> tuple[Seconds, Seconds, NDArray[np.uint16], NDArray[np.uint64]]:
        """Views of the columns. Callers drop them before the next `record`: an array with a view cannot grow."""
        return (
            np.frombuffer(self._started, np.float64),
            np.frombuffer(self._ended, np.float64),
            np.frombuffer(self._failure, np.uint16),
            np.frombuffer(self._image, np.uint64),
        )


def _parse_timing(header: bytes) -> dict[str, float]:
    """Milliseconds by name in a Server-Timing header, `name;dur=1.5, ...`; entries without a duration are left out."""
    steps = {}
    for entry in header.decode("latin-1").split(","):
        name, _, parameters = entry.strip().partition(";")
        for parameter in parameters.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key.lower() == "dur":
                try:
                    steps[name] = float(value.strip('"'))
                except ValueError:
                    continue
    return steps
