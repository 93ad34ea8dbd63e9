"""The benchmark of latency: what the server adds, and what is shown beside it."""

import time

from benchmarks.latency import LatencyRound, repeat, report


def test_what_the_server_adds() -> None:
    """The row has what the load took above the mean of the two loops around it; the table has all, and the tails."""
    rounds = [
        LatencyRound((6.0, 7.0), (7.5, 15.0), (8.0, 9.0), (7.0, 7.7)),
        LatencyRound((6.0, 6.0), (6.5, 13.0), (6.0, 6.0), (6.0, 6.0)),
    ]
    found = report(rounds)

    (row,) = found.rows
    assert list(row.values) == [0.5, 0.5]
    assert row.verdict == "pass"
    assert row.note.startswith("decoding and inference alone: 6.00,")
    served, _, counting = found.table
    assert served[1:] == ["7.00 (6.50 to 7.50)", "14.00 (13.00 to 15.00)", "2.00 (2.00 to 2.00)"]
    assert counting[0] == "a loop that only counts"
    assert {len(line) for line in found.table} == {len(found.heads)}


def test_repeat() -> None:
    """Work is repeated for the time that is given; each turn counts, the slowest in the 99th percentile."""
    turns: list[int] = []

    def work() -> None:
        turns.append(1)
        time.sleep(0.05 if len(turns) == 3 else 0.001)

    p50, p99 = repeat(work, 0.12)

    assert len(turns) > 3
    assert 1 <= p50 < 50 <= p99


def test_at_least_one_turn() -> None:
    """Work that lasts longer than the time is done once."""
    assert min(repeat(lambda: time.sleep(0.02), 0.01)) >= 20
