"""A process that hangs is noticed by the one at the other end of its link, and told from one that is only quiet."""

from pathlib import Path

import pytest

from service.common.errors import NotReady
from service.front.messages import Listening
from service.front.pulse import BEAT_S, SILENT_BEATS, Pulse
from tests.fakes import FakeEngine, ManualClock, reached
from tests.front_pair import Clocks, front_pair

pytestmark = pytest.mark.anyio

LONG_S = SILENT_BEATS * BEAT_S


async def test_beats() -> None:
    """Two that hear each other's beats are never silent; where one's are lost, the other says so once, in time."""
    clock, said = ManualClock(), list[str]()
    lost = False
    left = Pulse(clock, lambda: None if lost else right.heard(), lambda: said.append("right is silent"))
    right = Pulse(clock, lambda: left.heard(), lambda: said.append("left is silent"))
    left.start()
    right.start()
    await clock.advance(10 * LONG_S)
    assert said == []
    lost = True
    await clock.advance(LONG_S - 2 * BEAT_S)
    assert not right.silent
    await clock.advance(3 * LONG_S)
    assert (said, left.silent, right.silent) == (["left is silent"], False, True)
    lost = False
    await clock.advance(BEAT_S)
    assert not right.silent
    left.stop()
    right.stop()
    assert clock.pending == 0


async def test_a_machine_that_sleeps() -> None:
    """Time in which the process itself did not turn counts as one beat: nobody hangs because all were stopped."""
    clock, said = ManualClock(), list[str]()
    pulse = Pulse(clock, lambda: None, lambda: said.append("silent"))
    pulse.start()
    clock.jump(100 * LONG_S)
    await clock.advance(BEAT_S)
    pulse.stop()
    assert said == []


async def test_the_engine_process_hangs(artifacts: Path) -> None:
    """A front whose engine process says nothing is neither alive nor ready, until it hears of it again."""
    clock = ManualClock()
    async with front_pair(artifacts, FakeEngine(), clocks=Clocks(front=clock)) as pair:
        await reached(lambda: pair.calls.standing.ready is None)
        await clock.advance(LONG_S)
        for check in (pair.directory.check_alive, pair.directory.check_ready):
            with pytest.raises(NotReady, match="said nothing for 10 s; if it stays so, restart the server"):
                check()
        pair.desk.tell_standing()
        await reached(lambda: pair.calls.standing.ready is None)
        pair.directory.check_alive()
        pair.directory.check_ready()


async def test_a_front_hangs(artifacts: Path) -> None:
    """A front that says nothing is known to hang once it has listened; one that still starts is left in peace."""
    clock = ManualClock()
    async with front_pair(artifacts, FakeEngine(), clocks=Clocks(desk=clock)) as pair:
        await clock.advance(3 * LONG_S)
        assert not pair.desk.hangs.is_set()
        pair.calls.link.send(Listening())
        await reached(lambda: pair.desk.listening)
        await clock.advance(LONG_S)
        assert pair.desk.hangs.is_set()
