"""gRPC as a load generator needs it: serialised requests go out; of replies only this project's timing is read."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from loadgen.connection import OK, TIMEOUT, Done, Line, LoadError, Outcome, Payloads
from loadgen.images import Photo
from loadgen.target import CHECK_S
from proto.topfive.v1.classifier_pb2 import ClassifyReply, ClassifyRequest

_CLASSIFY = "/topfive.v1.Classifier/Classify"
_CHANNELS = 64  # lines beyond share them
_ASK_AGAIN_S = 0.1  # where nobody answers calls fail at once: without it they would be made in a tight circle
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # what is measured is what was sent
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each channel is a connection of its own
)

Call = Callable[..., Any]


class GrpcLine(Line):
    """One call at a time on a channel, which connects again by itself: `connects` does not count that."""

    def __init__(self, call: Call, payloads: Payloads, done: Done) -> None:
        super().__init__(payloads, done)
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._ending: list[asyncio.Task[None]] = []

    def _send(self, payload: bytes) -> None:
        self.connects = 1
        self._task = asyncio.get_running_loop().create_task(self._ask(payload))

    async def _ask(self, payload: bytes) -> None:
        call = self._call(payload)
        try:
            reply = await call
            outcome = Outcome(OK, b"", _timing(reply), len(reply))
        except asyncio.CancelledError:
            await call.code()  # until it has ended: an event of it that is left over would go to whoever runs next
            raise
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                await asyncio.sleep(_ASK_AGAIN_S)
            outcome = Outcome(error.code().name, (error.details() or "").encode())
        except DecodeError as error:
            outcome = Outcome("bad answer", str(error).encode())
        self.finish(outcome)

    def give_up(self) -> None:
        """Cancel the call."""
        if self._task is not None:
            self._task.cancel()
            self._ending = [task for task in self._ending if not task.done()] + [self._task]
        self.finish(Outcome(TIMEOUT))

    async def aclose(self) -> None:
        """Cancel the call that is under way."""
        self.busy = False
        tasks = [*self._ending, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class GrpcTarget:
    """Servers of `topfive.v1.Classifier`, each `HOST:PORT` or `grpc://HOST:PORT`; other addresses raise LoadError."""

    def __init__(self, urls: Sequence[str], model: str, photos: Sequence[Photo]) -> None:
        messages = [ClassifyRequest(image=photo.data, model=model).SerializeToString() for photo in photos]
        self.payloads: list[Payloads] = [messages] * len(urls)
        self._addresses = [_authority(url) for url in urls]
        self._channels: dict[int, grpc.aio.Channel] = {}

    def line(self, number: int, done: Done) -> Line:
        """A new line, on a channel of its own as long as there are few."""
        return GrpcLine(self._channel(number).unary_unary(_CLASSIFY), self.payloads[0], done)

    async def check(self) -> list[str]:
        """Ask each server once; what it said. Raises LoadError."""
        said = []
        for place, address in enumerate(self._addresses):
            reply = await self._asked(place, self.payloads[place][0])
            said.append(f"{address}: {len(reply):,} bytes, {_best(reply)}")
        return said

    async def aclose(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, number: int) -> grpc.aio.Channel:
        servers = len(self._addresses)
        key = number % max(servers, _CHANNELS // servers * servers)
        if key not in self._channels:
            self._channels[key] = grpc.aio.insecure_channel(self._addresses[key % servers], options=_OPTIONS)
        return self._channels[key]

    async def _asked(self, place: int, request: bytes) -> bytes:
        try:
            call: Call = self._channel(place).unary_unary(_CLASSIFY)
            reply = await call(request, timeout=CHECK_S)
        except grpc.aio.AioRpcError as error:
            where = self._addresses[place]
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise LoadError(f"{where} cannot be reached: {error.details()}; is its gRPC port there?") from error
            raise LoadError(f"{where} answers {error.code().name}: {error.details()}") from error
        assert isinstance(reply, bytes)
        return reply


def _best(reply: bytes) -> str:
    try:
        answer = ClassifyReply.FromString(reply)
        best = answer.predictions[0]
    except (DecodeError, IndexError) as error:
        raise LoadError("the answer is not that of topfive.v1.Classifier; of another server say its --api") from error
    engine = f"{answer.engine.runtime} {answer.engine.precision}"
    return f"{best.label} {best.probability:.3f}, {answer.model.name} on {engine}"


def _timing(reply: bytes) -> bytes:
    """The timing of a ClassifyReply as Server-Timing has it, so that both APIs are read alike."""
    steps = ClassifyReply.FromString(reply).timing_ms
    return (
        f"decode;dur={steps.decode}, queue;dur={steps.queue}, inference;dur={steps.inference}, total;dur={steps.total}"
    ).encode()


def _authority(address: str) -> str:
    """HOST:PORT. Raises LoadError."""
    host = address.removeprefix("grpc://").rstrip("/")
    if "/" in host or not host.rpartition(":")[2].isdecimal():
        raise LoadError(f"{address} is no gRPC address; give HOST:PORT, such as localhost:50051")
    return host
