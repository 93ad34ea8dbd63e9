"""Spends a few seconds on candidates: a look at each, more at the better half, rounds by turns among the best.

Medians are compared, of rounds that are apart in time, because a machine that others use as well changes its speed from
one second to the next. It opens nothing itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from service.offline.tuning.candidates import Candidate
from service.offline.tuning.rig import Figures, median

FINALISTS = 3
_LOOK_SHARE = 0.5  # of the time, for the first look at all
_HALVING_SHARE = 0.7  # of the time, until few enough are left
_HOPELESS = 2.0  # times the bound: what is that slow at first will not be under it in any later round
_LOOKS_S = 0.15, 1.0  # the shortest look that counts anything, and the longest that is worth it
_ROUNDS = 5
_FEWEST_ROUNDS = 3
_ROUNDS_S = 0.2, 1.5
_TIE = 0.05  # closer than this, medians of a few short rounds are not apart


class CandidateFailedError(Exception):
    """It cannot run; the message says why."""


class CandidateHangsError(Exception):
    """It has not returned within its time; the message says for how long."""


class State(StrEnum):
    """How far a candidate came."""

    MEASURED = "measured"
    FAILED = "failing"
    HANGING = "hanging"
    SKIPPED = "skipped"


@dataclass(slots=True)
class Row:
    """A candidate, its rounds so far, and the reason where it was not measured."""

    candidate: Candidate
    state: State = State.SKIPPED
    reason: str = "the time was over before it; give more --seconds"
    version: str = ""
    rounds: list[Figures] = field(default_factory=list)

    @property
    def figures(self) -> Figures:
        """The medians of its rounds; it must have been measured."""
        return median(self.rounds)

    def fits(self, max_latency_ms: float) -> bool:
        """Whether it was measured and its batches are under the bound."""
        return self.state is State.MEASURED and self.figures.run_ms <= max_latency_ms


class Measure(Protocol):
    """Measures a candidate for so many seconds."""

    def __call__(self, candidate: Candidate, seconds: float) -> tuple[str, Figures]:
        """Version of the runtime and figures. Raises CandidateFailedError or CandidateHangsError."""


@dataclass(frozen=True, slots=True)
class Search:
    """How long it may take in all, the bound of a batch, how to measure, and who is told before each measurement."""

    seconds: float
    max_latency_ms: float
    measure: Measure
    now: Callable[[], float]
    watch: Callable[[Candidate], None]

    def run(self, candidates: Sequence[Candidate], default: Candidate | None = None) -> list[Row]:
        """Every candidate, the best first; what was not measured comes last. A hang may cost more time than is given.

        `default` is what serves otherwise: it is compared to the end, so that nothing slower takes its place.

        Best is what does the most images per second with batches under the bound, of those that are too close to tell
        the one with the shortest batches; where none is under it, shortest batches come first.
        """
        began = self.now()
        rows = [Row(candidate) for candidate in candidates]
        lowest, highest = _LOOKS_S
        look_s = min(highest, max(lowest, self.seconds * _LOOK_SHARE / 2 / len(rows)))  # the other half opens engines
        for row in rows:
            if self.now() - began > self.seconds * _LOOK_SHARE and any(one.rounds for one in rows):
                break
            if (reason := self._hopeless(row, rows)) is not None:
                row.reason = reason
            else:
                self._round(row, look_s)
        finalists = self._halved(rows, look_s, began + self.seconds * _HALVING_SHARE)
        finalists += [row for row in rows if row.candidate == default and row.rounds and row not in finalists]
        self._finals(finalists, began + self.seconds)
        return self._result(rows, finalists)

    def _hopeless(self, row: Row, rows: Sequence[Row]) -> str | None:
        """Why it need not be looked at: its engine did not run, or had too long batches when they were smaller."""
        for other in rows:
            if other is row or other.candidate.setup != row.candidate.setup:
                continue
            if other.state in (State.FAILED, State.HANGING):
                return f"its engine is {other.state} in batches up to {other.candidate.max_batch}"
            if other.state is State.MEASURED and other.figures.run_ms > _HOPELESS * self.max_latency_ms:
                return f"batches up to {other.candidate.max_batch} are far over the bound already"
        return None

    def _round(self, row: Row, seconds: float) -> None:
        self.watch(row.candidate)
        try:
            row.version, figures = self.measure(row.candidate, seconds)
        except CandidateHangsError as error:
            row.state, row.reason = State.HANGING, str(error)
        except CandidateFailedError as error:
            row.state, row.reason = State.FAILED, str(error)
        else:
            row.rounds.append(figures)
            row.state, row.reason = State.MEASURED, ""

    def _halved(self, rows: Sequence[Row], look_s: float, end: float) -> list[Row]:
        """The few best, after one more look at each of the better half, again and again while there is time.

        The later look is in the other order, so that a slow second does not hit neighbours twice.
        """
        left = self._ranked(rows)
        while len(left) > FINALISTS:
            left = left[: max(FINALISTS, len(left) // 2)]
            if len(left) > FINALISTS:
                for row in sorted(left, key=rows.index, reverse=True):
                    if self.now() < end:
                        self._round(row, look_s)
                left = self._ranked(left)
        return left

    def _finals(self, finalists: Sequence[Row], end: float) -> None:
        """Rounds by turns until the end; at least a few, so that there is a median."""
        if len(finalists) < 2:
            return
        lowest, highest = _ROUNDS_S
        round_s = min(highest, max(lowest, (end - self.now()) / (_ROUNDS * len(finalists))))
        done = 0
        while done < _FEWEST_ROUNDS or self.now() + round_s * len(finalists) <= end:
            for row in finalists:
                if row.state is State.MEASURED:
                    self._round(row, round_s)
            done += 1

    def _ranked(self, rows: Sequence[Row]) -> list[Row]:
        """Those that were measured, by throughput under the bound; then by their batches those over it."""
        fitting = [row for row in rows if row.fits(self.max_latency_ms)]
        over = [row for row in rows if row.state is State.MEASURED and not row.fits(self.max_latency_ms)]
        fitting.sort(key=lambda row: -row.figures.images_per_s)
        over.sort(key=lambda row: row.figures.run_ms)
        return [*fitting, *over]

    def _result(self, rows: Sequence[Row], finalists: Sequence[Row]) -> list[Row]:
        """The finalists before the others, whose one look may have been lucky."""
        first = self._ranked(finalists)
        fitting = [row for row in first if row.fits(self.max_latency_ms)]
        if fitting:
            enough = (1 - _TIE) * fitting[0].figures.images_per_s
            close = [row for row in fitting if row.figures.images_per_s >= enough]
            best = min(close, key=lambda row: row.figures.run_ms)
            first.remove(best)
            first.insert(0, best)
        others = [row for row in rows if not any(row is one for one in finalists)]
        ranked = self._ranked(others)
        unmeasured = [row for row in rows if row.state is not State.MEASURED]
        return [*first, *ranked, *unmeasured]


def explain(rows: Sequence[Row], max_latency_ms: float) -> str:
    """Why the first of the rows that `Search.run` gave is the best, in a line."""
    best, measured = rows[0], [row for row in rows if row.state is State.MEASURED]
    figures = best.figures
    what = f"{best.candidate}: {figures.images_per_s:.0f} images/s, a batch runs {figures.run_ms:.1f} ms"
    among = f"of {len(measured)} measured, {sum(len(row.rounds) > 1 for row in measured)} of them again"
    under = f"with batches under {max_latency_ms:g} ms"
    if not best.fits(max_latency_ms):
        return f"{what}; no batches {among}, are under {max_latency_ms:g} ms, and these are the shortest"
    rivals = [row for row in measured[1:FINALISTS] if row.fits(max_latency_ms)]
    if any(row.figures.images_per_s > figures.images_per_s for row in rivals):
        return f"{what}; {among}, no more than {_TIE:.0%} behind the fastest, with shorter batches; {under}"
    return f"{what}; the most {among}, {under}"
