"""The search of `topfive tune`: its candidates, its choice and its time."""

from collections.abc import Callable

import pytest

from service.common.types import Precision, Runtime
from service.engines.selection.cpu_layout import default_layout
from service.offline.tuning.candidates import TuneCandidate, candidates, layouts, untuned
from service.offline.tuning.engine_load import EngineSpeed
from service.offline.tuning.search import (
    FINALISTS,
    CandidateFailed,
    CandidateResult,
    CandidateState,
    CandidateStuck,
    Search,
    explain,
)

BF16, F32 = (Runtime.OPENVINO, Precision.BF16), (Runtime.OPENVINO, Precision.F32)
Speed = Callable[[TuneCandidate, int], EngineSpeed | Exception]


class Machine:
    """Measures at scripted speeds, on a clock that only measurements move; `asked` are the candidates, in order."""

    def __init__(self, speed: Speed, open_s: float = 0.3) -> None:
        self.speed = speed
        self.open_s = open_s
        self.now_s = 0.0
        self.asked: list[TuneCandidate] = []

    def __call__(self, candidate: TuneCandidate, seconds: float) -> tuple[str, EngineSpeed]:
        first = candidate.engine not in {one.engine for one in self.asked}
        self.now_s += seconds + (self.open_s if first else 0.0)
        self.asked.append(candidate)
        done = self.speed(candidate, self.asked.count(candidate))
        if isinstance(done, Exception):
            raise done
        return "1.0", done

    def search(
        self,
        tried: list[TuneCandidate],
        seconds: float = 30.0,
        bound_ms: float = 100.0,
        default: TuneCandidate | None = None,
    ) -> list[CandidateResult]:
        """The results of a search, best first."""
        watched: list[TuneCandidate] = []
        rows = Search(seconds, bound_ms, self, lambda: self.now_s, watched.append).run(tried, default)
        assert watched == self.asked
        assert len(rows) == len(tried)
        assert {row.candidate for row in rows} == set(tried)
        return rows


def of(rate: float, run_ms: float = 10.0) -> EngineSpeed:
    """A measured speed."""
    return EngineSpeed(rate, run_ms, 5.0)


def scaled(candidate: TuneCandidate, _times: int) -> EngineSpeed:
    """bf16 is three times as fast, more slots are faster, larger batches only run longer."""
    rate = (3 if candidate.precision is Precision.BF16 else 1) * candidate.slots * 10 + candidate.max_batch / 10
    return of(rate, 10.0 * candidate.max_batch)


def test_threads_never_exceed_the_cpus() -> None:
    """Every layout uses at most the given CPUs; the default layout comes first."""
    for cpus in range(1, 130):
        tried = layouts(cpus)

        assert all(slots >= 1 and threads >= 1 and slots * threads <= cpus for slots, threads in tried)
        assert tried[0] == (min(4, cpus), cpus // min(4, cpus))
        assert len(tried) == len(set(tried)) <= 12


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 6, 8, 64])
@pytest.mark.parametrize("largest_batch", [None, 1, 4])
def test_what_serves_untuned_is_tried(cpus: int, largest_batch: int | None) -> None:
    """The default layout is a candidate in the first runtime and precision; no batch is larger than the graph takes."""
    default, layout = untuned([BF16, F32], cpus, largest_batch), default_layout(cpus)

    tried = candidates([BF16, F32], cpus, largest_batch)
    assert default in tried
    assert default.engine == (*BF16, layout.slots, layout.threads)
    assert {one.max_batch for one in tried} <= set(range(1, (largest_batch or 8) + 1))


def test_what_serves_untuned_is_compared_to_the_end() -> None:
    """The default candidate wins if it is the fastest, even if its first measurement was slow."""
    tried = candidates([BF16, F32], 8)
    default = untuned([BF16, F32], 8)

    def speed(candidate: TuneCandidate, times: int) -> EngineSpeed:
        return of((1 if times == 1 else 1000) if candidate == default else scaled(candidate, times).images_per_s)

    assert Machine(speed).search(tried)[0].candidate != default
    assert Machine(speed).search(tried, default=default)[0].candidate == default


def test_best_is_first_and_measured_most() -> None:
    """The fastest candidate under the bound wins; all finalists are measured equally often."""
    rows = Machine(scaled).search(candidates([BF16, F32], 2), bound_ms=50)

    assert rows[0].candidate == TuneCandidate(*BF16, 2, 1, 1)
    assert [len(row.rounds) for row in rows[:FINALISTS]] == [len(rows[0].rounds)] * FINALISTS
    assert len(rows[0].rounds) >= 4


@pytest.mark.parametrize(
    ("speed", "bound_ms", "batches", "why"),
    [
        (lambda size: of(100.0 * size, 10.0 * size), 50, [2, 1, 8], "the most of 3 measured"),
        (lambda size: of(5.0, 120.0 * size), 100, [1, 2, 8], "under 100 ms, and these are the shortest"),
        (lambda size: of(100.0 + size / 8, 10.0 * size), 100, [1, 8, 2], "no more than 5% behind the fastest, with"),
    ],
    ids=["over the bound", "none under the bound", "too close to tell"],
)
def test_order(speed: Callable[[int], EngineSpeed], bound_ms: float, batches: list[int], why: str) -> None:
    """The most images under the bound win, else the shortest batches, also where the difference is noise."""
    rows = Machine(lambda one, _: speed(one.max_batch)).search(candidates([F32], 1), bound_ms=bound_ms)

    assert [row.candidate.max_batch for row in rows] == batches
    assert why in explain(rows, bound_ms)
    skipped = [row.reason for row in rows if row.state is CandidateState.SKIPPED]
    assert skipped == ["batches up to 2 are far over the bound already"] * (bound_ms < rows[0].speed.run_ms)


def test_lucky_look_is_found_out() -> None:
    """A candidate with one fast measurement does not win: the median of several rounds counts."""
    lucky = TuneCandidate(*F32, 1, 2, 8)

    def speed(candidate: TuneCandidate, times: int) -> EngineSpeed:
        return of(500.0 if times == 1 else 1.0) if candidate == lucky else scaled(candidate, times)

    rows = Machine(speed).search(candidates([BF16, F32], 2))

    assert rows[0].candidate.engine == (*BF16, 2, 1)


@pytest.mark.parametrize("seconds", [2.0, 5.0, 30.0, 120.0])
@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_time_is_kept(seconds: float, cpus: int) -> None:
    """The search ends in time, apart from the fewest rounds that make a median; candidates left out say why."""
    machine = Machine(scaled)
    rows = machine.search(candidates([BF16, F32], cpus), seconds)

    fewest_s = 1.0 + 0.3 + 3 * FINALISTS * 0.2
    assert machine.now_s <= seconds + fewest_s
    assert machine.now_s >= 0.4 * min(seconds, 30.0)
    left_out = [row for row in rows if not row.rounds]
    assert {row.reason for row in left_out} <= {"the time was over before it; give more --seconds"}


@pytest.mark.parametrize("error", [CandidateStuck("20 s"), CandidateFailed("no")])
def test_engine_that_does_not_run_is_named_and_left(error: Exception) -> None:
    """An engine that fails is tried once and in no other batches; the search measures the other engines."""
    broken = (*BF16, 2, 1)
    machine = Machine(lambda one, times: error if one.engine == broken else scaled(one, times))

    rows = machine.search(candidates([BF16, F32], 2))

    assert sum(one.engine == broken for one in machine.asked) == 1
    state = CandidateState.STUCK if isinstance(error, CandidateStuck) else CandidateState.FAILED
    [row] = [row for row in rows if row.state is state]
    assert (row.candidate, row.reason) == (TuneCandidate(*broken, 1), str(error))
    others = [one for one in rows if one.candidate.engine == broken and one is not row]
    assert {one.reason for one in others} == {f"its engine is {state} in batches up to 1"}
    assert rows[0].candidate.engine == (*BF16, 1, 2)


def test_finalist_that_gets_stuck_late_is_not_chosen() -> None:
    """An engine that is stuck in its second round is not chosen, though its first round was the fastest."""
    best = TuneCandidate(*BF16, 2, 1, 8)
    machine = Machine(lambda one, times: CandidateStuck("20 s") if one == best and times > 1 else scaled(one, times))

    rows = machine.search(candidates([BF16, F32], 2))

    assert rows[0].candidate != best
    assert rows[0].state is CandidateState.MEASURED
    assert [row.state for row in rows if row.candidate == best] == [CandidateState.STUCK]
