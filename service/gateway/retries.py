"""A call to any of the inference servers: sent again where that is safe, within the caller's time."""

import logging
from typing import TypeVar

import grpc

from service.common.clock import Clock
from service.common.errors import DeadlineExceeded, ModelNotFound, NotReady, Overloaded, ShuttingDown, TopfiveError
from service.common.metrics import Metrics
from service.common.request_id import under_way
from service.gateway.backend import Replica, Send, Serving
from service.gateway.errors import Disconnected, translated
from service.gateway.load_balancer import Replicas

M = TypeVar("M")

MAX_BROKEN = 5
"""Connections that one call may break: an image that kills its server must not kill all of them for ever."""

_PAUSE_S = 0.1

log = logging.getLogger(__name__)

ASK_SERVER = "is topfive serve running there, and is that its gRPC port?"
"""What to look at where no server answers."""


class Calls:
    """Sends calls to the least busy server, and again to another.

    Classifying changes nothing, so a call is repeated whose connection was refused or broke, or whose server is
    stopping: elsewhere, or once a server has returned. Refused for want of room it is tried on one other server, for
    want of the model on every other, since not all need have the same ones. No other error is repeated.
    """

    def __init__(self, replicas: Replicas, clock: Clock, metrics: Metrics) -> None:
        self._replicas = replicas
        self._clock = clock
        self._metrics = metrics

    async def ask(self, send: Send[M], deadline: float) -> M:
        """The reply to `send` before `deadline`, in seconds of the clock.

        Raises the TopfiveError that the last server answered with; NotReady where none could be reached in time.
        """
        avoided: set[Replica] = set()
        refusal: TopfiveError | None = None
        broken = 0
        while True:
            left_s = deadline - self._clock.now()
            replica = self._replicas.pick(avoided) if left_s > 0 else None
            if replica is None:
                await self._wait(refusal, left_s)
                avoided.clear()
                continue
            ready = replica.state is Serving.YES  # another breaks because it stops, not because of the image
            try:
                return await replica.call(send, left_s)
            except grpc.aio.AioRpcError as error:
                failure = translated(error, replica.address)
                if isinstance(failure, Disconnected) and ready:
                    broken += 1
                if self._final(failure, refusal, broken):
                    raise failure from error
            if not isinstance(failure, (Disconnected, ShuttingDown)):
                refusal = _better(refusal, failure)
            avoided.add(replica)
            self._metrics.retried(failure.code)
            log.info("%s: %s: %s; trying again", under_way.get(), replica.address, failure.detail)

    @staticmethod
    def _final(failure: TopfiveError, refusal: TopfiveError | None, broken: int) -> bool:
        """Whether no other server may be asked after this failure."""
        if isinstance(failure, Disconnected):
            return broken >= MAX_BROKEN
        if isinstance(failure, Overloaded):
            return isinstance(refusal, Overloaded)
        return not isinstance(failure, (NotReady, ShuttingDown, ModelNotFound))

    async def _wait(self, refusal: TopfiveError | None, left_s: float) -> None:
        """For a server that may be asked. Raises what is final: no other server, no time, no service."""
        if refusal is not None:
            raise refusal
        if self._replicas.closed:
            raise ShuttingDown
        if left_s <= 0:
            if self._replicas.serving:
                raise DeadlineExceeded
            raise NotReady(f"no inference server can be reached at {self._replicas}; {ASK_SERVER}")
        await self._replicas.change(min(_PAUSE_S, left_s))


def _better(earlier: TopfiveError | None, later: TopfiveError) -> TopfiveError:
    """Which refusal a caller is told of: a server that has the model, but cannot run it now, may be asked again."""
    return earlier if earlier is not None and isinstance(later, ModelNotFound) else later
