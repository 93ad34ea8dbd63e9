"""Bounds the messages that gRPC holds before the service counts them, and turns exceptions into the status of calls."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from service.common.api_keys import admitted
from service.common.errors import BadRequest, DeadlineExceeded, Overloaded
from service.common.request_id import begin_request, current_request_id
from service.rpc.errors import Context, abort

_MAX_WAITING = 1024  # calls whose message is not read yet; gRPC holds up to 256 KiB of each
_READ_TIMEOUT_S = 20.0  # for a place and the whole message
_RETRY_S = 1.0

_Answer = Callable[[Any, Context], Awaitable[Any]]


class MessageLimit(grpc.aio.ServerInterceptor):
    """Lets each service read at most `places` messages of unary calls at once, and have at most `places` streams.

    gRPC reads a whole message before it calls the servicer. A stream may hold one message at any time, so it keeps its
    place until it ends. Further unary calls wait; further streams get Overloaded. An exception of a unary method
    becomes its status here: an aborted call lives until the garbage collector runs, so it must not hold the message.
    """

    def __init__(self, places: int) -> None:
        self._reading: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(places))
        self._streaming: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(places))
        self._waiting = 0

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or (handler.response_streaming and not handler.request_streaming):
            return handler
        service = details.method.rpartition("/")[0]
        kind, answer = (
            (grpc.stream_stream_rpc_method_handler, _streamed(handler.stream_stream, self._streaming[service]))
            if handler.stream_stream
            else (grpc.stream_unary_rpc_method_handler, self._read_first(handler.unary_unary, self._reading[service]))
        )
        return kind(answer, handler.request_deserializer, handler.response_serializer)

    def _read_first(self, answer: _Answer, reading: asyncio.Semaphore) -> _Answer:
        """Return a method that reads the only message of a call, and gives it to `answer`."""

        async def read(_requests: AsyncIterator[Any], context: Context) -> Any:
            try:
                with admitted():
                    return await answer(await self._first(context, reading), context)
            except grpc.aio.AbortError:  # by the health service
                raise
            except Exception as error:
                await abort(context, error, current_request_id.get() or begin_request(None))

        return read

    async def _first(self, context: Context, reading: asyncio.Semaphore) -> Any:
        """Read the first message. Raises Overloaded, DeadlineExceeded, or BadRequest if there is none."""
        if self._waiting >= _MAX_WAITING:
            raise Overloaded(_RETRY_S)
        self._waiting += 1
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S), reading:
                request = await context.read()  # the iterator would keep the message
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            self._waiting -= 1
        if request is grpc.aio.EOF:
            raise BadRequest("the call has no message")
        return request


def _streamed(answer: Callable[[Any, Context], AsyncIterator[Any]], places: asyncio.Semaphore) -> Any:
    """Return a method that answers a stream by `answer` if there is a place."""

    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        if places.locked():
            await abort(context, Overloaded(_RETRY_S, "too many streams are open"), begin_request(None))
        async with places:
            async for reply in answer(requests, context):
                yield reply

    return stream
