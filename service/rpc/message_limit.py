"""Bounds the messages that gRPC holds before the service counts them, and turns exceptions into the status of calls."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import grpc

from service.common.api_keys import admitted, current_client
from service.common.errors import BadRequest, DeadlineExceeded, TooLarge
from service.common.request_id import begin_request, current_request_id
from service.common.upload_budget import UploadBudget
from service.rpc import servicer, v2
from service.rpc.errors import Context, abort

_MAX_WAITING = 1024  # calls whose message is not read yet; gRPC holds up to 256 KiB of each
_READ_TIMEOUT_S = 20.0  # for a place and the whole message

# The services that read images share their places: memory does not grow with their number.
_SHARED = {f"/{v2.SERVICE}": f"/{servicer.SERVICE}"}

_DESERIALIZERS = {
    f"/{v2.SERVICE}/ModelInfer": v2.parse_request,
    f"/{servicer.SERVICE}/Compare": servicer.parse_compare,
}

_WITH_IMAGE = {*_DESERIALIZERS, f"/{servicer.SERVICE}/Classify", f"/{servicer.SERVICE}/ClassifyStream"}
_MAX_OTHER_BYTES = 1 << 20  # of every other message

_Answer = Callable[[Any, Context], Awaitable[Any]]
_Parse = Callable[[bytes], Any]


class MessageLimit(grpc.aio.ServerInterceptor):
    """Lets each service read at most `places` messages of unary calls at once, and have at most `places` streams.

    gRPC reads a whole message before it calls the servicer. A stream may hold one message at any time, so it keeps its
    place until it ends. Further unary calls wait; further streams get Overloaded. A client, which is a key or without
    keys an address, gets about half of the places. An exception of a method becomes its status here: an aborted call
    lives until the garbage collector runs, so it must not hold the message.
    """

    def __init__(self, places: int) -> None:
        self._share = (places + 1) // 2
        self._shares: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()
        self._reading: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(places))
        self._streaming: dict[str, UploadBudget] = defaultdict(lambda: UploadBudget(places))  # a stream is one
        self._waiting = UploadBudget(_MAX_WAITING)  # a call is one

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or (handler.response_streaming and not handler.request_streaming):
            return handler
        service = details.method.rpartition("/")[0]
        service = _SHARED.get(service, service)
        parse: _Parse = _DESERIALIZERS.get(details.method, handler.request_deserializer)
        deserialize = parse if details.method in _WITH_IMAGE else _short(parse)
        kind, answer = (
            (grpc.stream_stream_rpc_method_handler, _streamed(handler.stream_stream, self._streaming[service]))
            if handler.stream_stream
            else (grpc.stream_unary_rpc_method_handler, self._read_first(handler.unary_unary, service))
        )
        return kind(answer, deserialize, handler.response_serializer)

    def _read_first(self, answer: _Answer, service: str) -> _Answer:
        """Return a method that reads the only message of a call, and gives it to `answer`."""

        async def read(_requests: AsyncIterator[Any], context: Context) -> Any:
            try:
                with admitted():
                    return await answer(await self._first(context, service), context)
            except grpc.aio.AbortError:  # by the health service
                raise
            except Exception as error:
                await abort(context, error, current_request_id.get() or begin_request(None))

        return read

    async def _first(self, context: Context, service: str) -> Any:
        """Read the first message. Raises Overloaded, DeadlineExceeded, or BadRequest if there is none."""
        client = _client(context)
        share = self._shares.setdefault((service, client), asyncio.Semaphore(self._share))
        with self._waiting.share(client) as take:
            take(1)
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S), share, self._reading[service]:
                    request = await context.read()  # the iterator would keep the message
            except TimeoutError:
                raise DeadlineExceeded from None
        if request is grpc.aio.EOF:
            raise BadRequest("the call has no message")
        return request


def _short(parse: _Parse) -> _Parse:
    """Return `parse` for messages of at most 1 MiB. It raises TooLarge for others."""

    def parsed(content: bytes) -> Any:
        if len(content) > _MAX_OTHER_BYTES:
            raise TooLarge(f"the message has {len(content):,} bytes; one of this call has at most {_MAX_OTHER_BYTES:,}")
        return parse(content)

    return parsed


def _streamed(answer: Callable[[Any, Context], AsyncIterator[Any]], places: UploadBudget) -> Any:
    """Return a method that answers a stream by `answer` if there is a place."""

    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            with places.share(_client(context)) as take:
                take(1)
                async for reply in answer(requests, context):
                    yield reply
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error, begin_request(None))

    return stream


def _client(context: Context) -> str:
    client = current_client.get()
    return client.key.name if client else context.peer().rpartition(":")[0]
