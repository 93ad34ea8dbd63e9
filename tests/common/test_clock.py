"""The clock of the service: its timers, and the deadline of a block."""

import asyncio

import pytest
import uvloop

from service.common.clock import LoopClock, timeout_at
from service.common.errors import DeadlineExceeded
from tests.fakes import ManualClock, settle


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_timer_is_never_early(loop: type[asyncio.AbstractEventLoop]) -> None:
    """No timer runs before its time, not by a fraction of a millisecond, which uvloop does not count."""
    clock = LoopClock()

    async def lateness_s(delay_s: float) -> float:
        ran: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        when = clock.now() + delay_s
        clock.call_at(when, lambda: ran.set_result(clock.now() - when))
        return await ran

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(lateness_s(number / 10_000) for number in range(300)))

    with asyncio.Runner(loop_factory=loop) as runner:
        assert min(runner.run(all_of_them())) >= 0


@pytest.mark.anyio
async def test_a_block_ends_at_its_deadline() -> None:
    """A block is cancelled at its deadline and raises DeadlineExceeded; one that ends in time leaves no timer."""
    clock = ManualClock()
    ended: list[str] = []

    async def work(deadline: float) -> None:
        with timeout_at(deadline, clock):
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append("block")

    task = asyncio.create_task(work(clock.now() + 2))
    await settle()
    await clock.advance(1.999)
    assert not task.done()
    await clock.advance(0.001)
    with pytest.raises(DeadlineExceeded):
        await task
    with pytest.raises(DeadlineExceeded):
        await work(clock.now())
    assert ended == ["block"], "nothing of a block whose deadline has passed"
    assert clock.pending == 0


@pytest.mark.anyio
@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError])
async def test_other_ends_of_a_block_stay_what_they_are(error: type[BaseException]) -> None:
    """A timeout inside the block, or a caller that cancels it, is not its deadline."""
    clock = ManualClock()
    with pytest.raises(error), timeout_at(clock.now() + 2, clock):
        raise error
    assert clock.pending == 0
