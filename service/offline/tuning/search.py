"""Finds the best candidate in a few seconds: measures all briefly, the better half again, then the best in turns.

It compares medians of rounds that are apart in time, because a machine that others use changes its speed from one
second to the next. It opens no engine itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from service.offline.tuning.candidates import TuneCandidate
from service.offline.tuning.engine_load import EngineSpeed, median

FINALISTS = 3
_LOOK_SHARE = 0.5  # of the time, for the first round of all candidates
_HALVING_SHARE = 0.7  # of the time, until few enough are left
_HOPELESS = 2.0  # times the latency bound: no later round can bring such a batch under it
_LOOKS_S = 0.15, 1.0  # seconds of a first round: the shortest that is meaningful, and the longest that is useful
_ROUNDS = 5
_FEWEST_ROUNDS = 3
_ROUNDS_S = 0.2, 1.5
_TIE = 0.05  # medians of a few short rounds count as equal within this


class CandidateFailed(Exception):
    """An engine cannot run. The message says why."""


class CandidateStuck(Exception):
    """An engine has not returned in time. The message says for how long."""


class CandidateState(StrEnum):
    """The outcome of a candidate."""

    MEASURED = "measured"
    FAILED = "failing"
    STUCK = "stuck"
    SKIPPED = "skipped"


@dataclass(slots=True)
class CandidateResult:
    """A candidate with its speed in each round, or the reason why it is not measured."""

    candidate: TuneCandidate
    state: CandidateState = CandidateState.SKIPPED
    reason: str = "the time was over before it; give more --seconds"
    version: str = ""
    rounds: list[EngineSpeed] = field(default_factory=list)

    @property
    def speed(self) -> EngineSpeed:
        """The median of the rounds, of which there must be at least one."""
        return median(self.rounds)

    def fits(self, max_latency_ms: float) -> bool:
        """Whether it was measured and its batches run within the bound."""
        return self.state is CandidateState.MEASURED and self.speed.run_ms <= max_latency_ms


class Measure(Protocol):
    """Measures a candidate for `seconds`."""

    def __call__(self, candidate: TuneCandidate, seconds: float) -> tuple[str, EngineSpeed]:
        """The version of the runtime, and the speed. Raises CandidateFailed or CandidateStuck."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search that takes `seconds`. `watch` is called with each candidate before it is measured."""

    seconds: float
    max_latency_ms: float
    measure: Measure
    now: Callable[[], float]
    watch: Callable[[TuneCandidate], None]

    def run(self, candidates: Sequence[TuneCandidate], default: TuneCandidate | None = None) -> list[CandidateResult]:
        """The results of all candidates, the best first, those that were not measured last.

        The best has the most images per second with batches within the bound; of those that are too close to
        distinguish, the one with the shortest batches. If none is within the bound, the shortest batches come first.
        `default` serves without tuning: it is measured to the end, so that nothing slower takes its place. A stuck
        engine may exceed the time.
        """
        started = self.now()
        results = [CandidateResult(candidate) for candidate in candidates]
        lowest, highest = _LOOKS_S
        look_s = min(highest, max(lowest, self.seconds * _LOOK_SHARE / 2 / len(results)))  # half goes into opening
        for one in results:
            if self.now() - started > self.seconds * _LOOK_SHARE and any(other.rounds for other in results):
                break
            if (reason := self._hopeless(one, results)) is not None:
                one.reason = reason
            else:
                self._round(one, look_s)
        finalists = self._halved(results, look_s, started + self.seconds * _HALVING_SHARE)
        finalists += [one for one in results if one.candidate == default and one.rounds and one not in finalists]
        self._finals(finalists, started + self.seconds)
        return self._ordered(results, finalists)

    def _hopeless(self, result: CandidateResult, results: Sequence[CandidateResult]) -> str | None:
        """Why it need not be measured: its engine does not run, or smaller batches were far too slow."""
        for other in results:
            if other is result or other.candidate.engine != result.candidate.engine:
                continue
            if other.state in (CandidateState.FAILED, CandidateState.STUCK):
                return f"its engine is {other.state} in batches up to {other.candidate.max_batch}"
            if other.state is CandidateState.MEASURED and other.speed.run_ms > _HOPELESS * self.max_latency_ms:
                return f"batches up to {other.candidate.max_batch} are far over the bound already"
        return None

    def _round(self, result: CandidateResult, seconds: float) -> None:
        self.watch(result.candidate)
        try:
            result.version, speed = self.measure(result.candidate, seconds)
        except CandidateStuck as error:
            result.state, result.reason = CandidateState.STUCK, str(error)
        except CandidateFailed as error:
            result.state, result.reason = CandidateState.FAILED, str(error)
        else:
            result.rounds.append(speed)
            result.state, result.reason = CandidateState.MEASURED, ""

    def _halved(self, results: Sequence[CandidateResult], look_s: float, end: float) -> list[CandidateResult]:
        """The few best: measures the better half again, then half of these, while there is time.

        Each pass goes in the opposite order, so that a slow second does not hit neighbours twice.
        """
        left = self._ranked(results)
        while len(left) > FINALISTS:
            left = left[: max(FINALISTS, len(left) // 2)]
            if len(left) > FINALISTS:
                for one in sorted(left, key=results.index, reverse=True):
                    if self.now() < end:
                        self._round(one, look_s)
                left = self._ranked(left)
        return left

    def _finals(self, finalists: Sequence[CandidateResult], end: float) -> None:
        """Measure the finalists in turns until the end, often enough for a median."""
        if len(finalists) < 2:
            return
        lowest, highest = _ROUNDS_S
        round_s = min(highest, max(lowest, (end - self.now()) / (_ROUNDS * len(finalists))))
        done = 0
        while done < _FEWEST_ROUNDS or self.now() + round_s * len(finalists) <= end:
            for one in finalists:
                if one.state is CandidateState.MEASURED:
                    self._round(one, round_s)
            done += 1

    def _ranked(self, results: Sequence[CandidateResult]) -> list[CandidateResult]:
        """The measured results: within the bound by throughput, then the others by their run times."""
        measured = [one for one in results if one.state is CandidateState.MEASURED]

        def rank(one: CandidateResult) -> tuple[bool, float]:
            fits = one.fits(self.max_latency_ms)
            return not fits, -one.speed.images_per_s if fits else one.speed.run_ms

        return sorted(measured, key=rank)

    def _ordered(
        self, results: Sequence[CandidateResult], finalists: Sequence[CandidateResult]
    ) -> list[CandidateResult]:
        """The finalists before the others, whose few measurements are less reliable."""
        first = self._ranked(finalists)
        if first and first[0].fits(self.max_latency_ms):
            enough = (1 - _TIE) * first[0].speed.images_per_s
            close = [one for one in first if one.fits(self.max_latency_ms) and one.speed.images_per_s >= enough]
            best = min(close, key=lambda one: one.speed.run_ms)
            first.sort(key=lambda one: one is not best)
        others = [one for one in results if not any(one is finalist for finalist in finalists)]
        unmeasured = [one for one in results if one.state is not CandidateState.MEASURED]
        return [*first, *self._ranked(others), *unmeasured]


def explain(results: Sequence[CandidateResult], max_latency_ms: float) -> str:
    """Why the first result of `Search.run` is the best, in one line."""
    best, measured = results[0], [one for one in results if one.state is CandidateState.MEASURED]
    what = f"{best.candidate}: {best.speed.images_per_s:.0f} images/s, a batch runs {best.speed.run_ms:.1f} ms"
    among = f"of {len(measured)} measured, {sum(len(one.rounds) > 1 for one in measured)} of them again"
    under = f"with batches under {max_latency_ms:g} ms"
    if not best.fits(max_latency_ms):
        return f"{what}; no batches {among}, are under {max_latency_ms:g} ms, and these are the shortest"
    rivals = [one for one in measured[1:FINALISTS] if one.fits(max_latency_ms)]
    if any(one.speed.images_per_s > best.speed.images_per_s for one in rivals):
        return f"{what}; {among}, no more than {_TIE:.0%} behind the fastest, with shorter batches; {under}"
    return f"{what}; the most {among}, {under}"
