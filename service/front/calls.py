"""The front's side of the link: questions that wait for the engine process, and the photos that it wants crops of."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from service.common.clock import Clock
from service.common.errors import DeadlineExceeded, EngineError, NotReady, ShuttingDown, TopfiveError
from service.common.request_id import under_way
from service.common.types import Samples
from service.front.link import Link
from service.front.messages import (
    Answered,
    Asked,
    Beat,
    Counted,
    Crops,
    Freed,
    FromEngine,
    Left,
    Made,
    NotMade,
    Question,
    Refused,
    Standing,
    Stop,
    Wanted,
    unpacked_specs,
)
from service.front.pulse import BEAT_S, SILENT_BEATS, Pulse
from service.front.region import Arena
from service.preprocessing.interface import Photo
from service.preprocessing.preprocessor import Decoder

KEEPER = "last"
"""The asker of a photo here that stays until the engine process wants nothing more of it."""

GRACE_S = 1.0
"""After its deadline a call is given up here, where the engine process has not said so: it may hang."""

_GONE = "the engine process is gone; the server ends, and has to be started again"
_HANGS = f"the engine process has said nothing for {SILENT_BEATS * BEAT_S:g} s; if it stays so, restart the server"

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    answer: asyncio.Future[Any]
    photo: Photo | None
    context: Context  # of the request: what is done for it is logged under its id
    cuts: set[asyncio.Task[None]] = field(default_factory=set)


class Calls:
    """Asks the engine process. `on_standing` is called when `standing` changes, `on_stop` when that says to stop."""

    def __init__(
        self,
        clock: Clock,
        decoder: Decoder,
        arena: Arena,
        *,
        on_standing: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        starting = NotReady("the server is starting")
        self._told = Standing(alive=None, ready=starting)
        self.ended = asyncio.Event()
        self._clock = clock
        self._decoder = decoder
        self._arena = arena
        self._on_standing = on_standing
        self._on_stop = on_stop
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count()
        self._refusing: TopfiveError | None = None
        self._pulse = Pulse(clock, lambda: self.link.send(Beat()), self._silent)
        self.link = Link(self._received, self._lost)

    @property
    def standing(self) -> Standing:
        """How the engine process said last that it stands; neither alive nor ready while it says nothing at all."""
        return Standing(alive=NotReady(_HANGS), ready=NotReady(_HANGS)) if self._pulse.silent else self._told

    async def connect(self, end: socket.socket) -> None:
        """Begin on this end of the pair of sockets."""
        await self.link.connect(end)
        self._pulse.start()

    async def ask(self, question: Question, deadline: float) -> Any:
        """The answer to a question without a photo; raises as `classify` does."""
        return await self._asked(question, None, deadline)

    async def classify(self, question: Question, data: bytes, crops: int, deadline: float) -> Any:
        """The answer to a question about the image in `data`; cancelled, it tells the engine process so.

        Raises the TopfiveError that the engine process answers with; NotReady where that is gone, DeadlineExceeded
        where it does not answer, ShuttingDown after `refuse`.
        """
        with self._decoder.photo(data, crops, [KEEPER]) as photo:
            return await self._asked(question, photo, deadline)

    def count(self, model: str, code: str) -> None:
        """Count a request that was refused here."""
        self.link.send(Counted(model, code))

    def refuse(self) -> None:
        """Tell everybody who waits, and who comes, that the server is stopping."""
        self._fail_all(ShuttingDown())

    async def _asked(self, question: Question, photo: Photo | None, deadline: float) -> Any:
        if self._refusing is not None:
            raise self._refusing
        number = next(self._numbers)
        call = self._calls[number] = _Call(asyncio.get_running_loop().create_future(), photo, copy_context())
        self.link.send(Asked(number, under_way.get(), question))
        timer = self._clock.call_at(deadline + GRACE_S, lambda: _settle(call, DeadlineExceeded()))
        try:
            return await call.answer
        finally:
            timer.cancel()
            del self._calls[number]
            if call.answer.cancelled() or isinstance(call.answer.exception(), DeadlineExceeded):
                self.link.send(Left(number))
            for cut in call.cuts:
                cut.cancel()

    def _received(self, message: FromEngine) -> None:
        if self._pulse.silent:
            self._pulse.heard()
            log.warning("the engine process is heard again")
            self._on_standing()
        self._pulse.heard()  # a Beat says no more
        match message:
            case Answered():
                self._ended(message.call, message.value)
            case Refused():
                self._ended(message.call, message.error)
            case Wanted():
                self._wanted(message)
            case Freed():
                for offset in message.offsets:
                    self._arena.free(offset)
            case Standing():
                self._told = message
                self._on_standing()
            case Stop():
                self._on_stop()

    def _ended(self, number: int, result: object) -> None:
        if (call := self._calls.get(number)) is not None:
            _settle(call, result)

    def _wanted(self, wanted: Wanted) -> None:
        if (call := self._calls.get(wanted.call)) is not None:
            task = asyncio.get_running_loop().create_task(self._cut(call, wanted), context=call.context)
            call.cuts.add(task)
            task.add_done_callback(call.cuts.discard)

    async def _cut(self, call: _Call, wanted: Wanted) -> None:
        """Decode and cut on threads, and put the samples where the engine process sees them."""
        assert call.photo is not None, "only of calls with a photo crops are wanted"
        try:
            asker = KEEPER if wanted.last else ""
            prepared = await call.photo.samples(asker, unpacked_specs(wanted.recipes))
            where = await self._placed(wanted.cut, [one.samples for one in prepared])
        except TopfiveError as error:
            self.link.send(NotMade(wanted.call, wanted.cut, error))
            return
        except Exception as error:
            log.exception("%s: an image could not be decoded", under_way.get())
            self.link.send(NotMade(wanted.call, wanted.cut, EngineError(f"the image could not be decoded: {error}")))
            return
        crops = tuple(Crops(one.samples.shape, one.preprocessing, one.took_s) for one in prepared)
        self.link.send(Made(wanted.call, wanted.cut, where, crops, call.photo.seconds))

    async def _placed(self, cut: int, samples: list[Samples]) -> int | bytes:
        """Where they lie, or they themselves: a call that has a place already does not wait for a second one.

        It keeps the first until it has its answer; if all places were kept so, all would wait for ever.
        """
        if cut == 0:
            return await self._arena.place(samples)
        offset = await self._arena.place_at_once(samples)
        return b"".join(one.tobytes() for one in samples) if offset is None else offset

    def _silent(self) -> None:
        log.error(_HANGS)
        self._on_standing()

    def _lost(self) -> None:
        self._pulse.stop()
        self._pulse.heard()
        self._fail_all(NotReady(_GONE))
        self._told = Standing(alive=NotReady(_GONE), ready=NotReady(_GONE))
        self._on_standing()
        self.ended.set()

    def _fail_all(self, error: TopfiveError) -> None:
        self._refusing = self._refusing or error
        for call in self._calls.values():
            _settle(call, error)


def _settle(call: _Call, result: object) -> None:
    if call.answer.done():
        return
    if isinstance(result, TopfiveError):
        call.answer.set_exception(result)
    else:
        call.answer.set_result(result)
