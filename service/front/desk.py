"""The engine process's side of the link to one front: it answers with the models of this process."""

import asyncio
import logging
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.common.clock import Clock
from service.common.errors import Code, EngineError, NotReady, ShuttingDown, TopfiveError
from service.common.metrics import Metrics
from service.common.request_id import under_way
from service.common.types import Samples
from service.front.link import Link
from service.front.messages import (
    Answered,
    Asked,
    Beat,
    Classify,
    Compare,
    Counted,
    Freed,
    FromFront,
    GetLayers,
    GetMetrics,
    GetModel,
    Left,
    Listening,
    ListModels,
    Made,
    NotMade,
    Question,
    Refused,
    Standing,
    Stop,
    packed,
)
from service.front.photo import Sent
from service.front.pulse import Pulse
from service.front.region import Window, laid_out
from service.inference.classifier import LocalClassifier
from service.inference.comparison import Comparison
from service.inference.model_directory import Directory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class House:
    """What answers: one for all fronts, with the clock that it goes by."""

    classifier: LocalClassifier[Sent]
    directory: Directory
    metrics: Metrics
    clock: Clock


class Desk:
    """Serves one front over `link`, whose samples lie in the region of that descriptor.

    `listening` is true, and `on_listening` was called, once the front takes connections. `hangs` is set when it says
    nothing any more from then on. `ended` is set when it is gone: its calls are cancelled then, and what lies in its
    region is kept as long as a batch reads it.
    """

    def __init__(self, house: House, region: int, on_listening: Callable[[], None] = lambda: None) -> None:
        self.link = Link(self._received, self._lost)
        self.listening = False
        self._on_listening = on_listening
        self.hangs = asyncio.Event()
        self.ended = asyncio.Event()
        self._pulse = Pulse(house.clock, lambda: self.link.send(Beat()), self._silent)
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._window = Window(region, self._freed)
        self._free: list[int] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._sent: dict[int, Sent] = {}

    async def connect(self, end: socket.socket) -> None:
        """Begin on this end of the pair of sockets."""
        await self.link.connect(end)
        self.tell_standing()
        self._pulse.start()

    @property
    def under_way(self) -> int:
        """Questions that wait for their answer."""
        return len(self._tasks)

    def tell_standing(self) -> None:
        """Tell the front how the service stands now."""
        directory = self._house.directory
        self.link.send(Standing(_raised(directory.check_alive), _raised(directory.check_ready)))

    def tell_stop(self) -> None:
        """Tell the front to stop; a second time, to end at once."""
        self.link.send(Stop())

    def _received(self, message: FromFront) -> None:
        self._pulse.heard()  # a Beat says no more
        match message:
            case Asked():
                self._tasks[message.call] = self._loop.create_task(self._answer(message))
            case Made():
                samples = self._samples(message)  # unused ones are free at once
                if (sent := self._sent.get(message.call)) is not None:
                    sent.made(message, samples)
            case NotMade():
                if (sent := self._sent.get(message.call)) is not None:
                    sent.not_made(message)
            case Left():
                if (task := self._tasks.get(message.call)) is not None:
                    task.cancel()
            case Counted():
                self._house.metrics.answered(message.model, message.code)
            case Listening():
                self.listening = True
                self._on_listening()

    def _samples(self, made: Made) -> list[Samples]:
        shapes = [one.shape for one in made.crops]
        if isinstance(made.where, int):
            return self._window.samples(made.where, shapes)
        return laid_out(np.frombuffer(made.where, dtype=np.uint8), shapes)

    async def _answer(self, asked: Asked) -> None:
        under_way.set(asked.identity)
        try:
            self.link.send(Answered(asked.call, await self._value(asked.call, asked.question)))
        except TopfiveError as error:
            if error.code is Code.INTERNAL:
                log.error("%s: %s", asked.identity, error.detail, exc_info=error)
            self.link.send(Refused(asked.call, error))
            _let_go(error)
        except Exception as error:
            log.exception("%s: unexpected error", asked.identity)
            self.link.send(Refused(asked.call, EngineError("unexpected error")))
            _let_go(error)
        except asyncio.CancelledError as error:
            _let_go(error)
            raise
        finally:
            del self._tasks[asked.call]

    async def _value(self, call: int, question: Question) -> Any:
        directory = self._house.directory
        match question:
            case Classify():
                return await self._classified(call, question)
            case Compare():
                return await self._compared(call, question)
            case ListModels():
                return await asyncio.to_thread(packed, await directory.models())
            case GetModel():
                return await asyncio.to_thread(packed, await directory.model(question.name))
            case GetLayers():
                return await asyncio.to_thread(packed, await directory.layers(question.name))
            case GetMetrics():
                return await self._house.metrics.scrape()

    async def _classified(self, call: int, asked: Classify) -> Any:
        sent = self._sent[call] = Sent(call, asked.size_bytes, self.link)
        try:
            return await self._house.classifier.classify(
                sent, model=asked.model, top_k=asked.top_k, crops=asked.crops, deadline=asked.deadline
            )
        finally:
            del self._sent[call]

    async def _compared(self, call: int, asked: Compare) -> Comparison:
        sent = self._sent[call] = Sent(call, asked.size_bytes, self.link)
        try:
            comparison = await self._house.classifier.compare(
                sent, models=asked.models, top_k=asked.top_k, crops=asked.crops, deadline=asked.deadline
            )
        finally:
            del self._sent[call]
        for row in comparison.rows:
            if isinstance(row.result, Exception):
                if getattr(row.result, "code", Code.INTERNAL) is Code.INTERNAL:
                    log.error("%s: %s failed", under_way.get(), row.model, exc_info=row.result)
                _let_go(row.result)
        return comparison

    def _silent(self) -> None:
        if self.listening:  # before, it starts, which takes as long as it takes
            self.hangs.set()

    def _lost(self) -> None:
        self._pulse.stop()
        self._window.close()  # this desk is a part of cycles, and the garbage collector comes by seldom
        for task in self._tasks.values():
            task.cancel()
        self.ended.set()

    def _freed(self, offset: int) -> None:
        """On whichever thread let the last view of it go."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note_free, offset)

    def _note_free(self, offset: int) -> None:
        if not self._free:
            self._loop.call_soon(self._tell_free)
        self._free.append(offset)

    def _tell_free(self) -> None:
        self.link.send(Freed(tuple(self._free)))
        self._free.clear()


def _let_go(error: BaseException | None) -> None:
    """Forget what the functions held that it came through: samples, in memory that a front waits for.

    They and their errors hold each other, so it would stay taken until the garbage collector comes by.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _raised(check: Callable[[], None]) -> TopfiveError | None:
    try:
        check()
    except (NotReady, ShuttingDown) as error:
        return error
    return None
