"""The gRPC calls: each reads its message, calls the data plane, and answers."""

import asyncio
from collections.abc import AsyncIterator

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer
from service.common.api_keys import admitted
from service.common.errors import TooLarge
from service.common.request_id import begin_request
from service.common.types import DEFAULT_CROPS
from service.inference.dataplane import ClassifyOptions, DataPlane
from service.rpc import converters
from service.rpc.errors import Context, describe
from service.rpc.in_flight import RequestsInFlight

SERVICE: str = pb.DESCRIPTOR.services_by_name["Classifier"].full_name

_MAX_NAMES_BYTES = 1 << 20  # of a comparison; a message of empty names takes 25 times its size, and Python a second
_STREAM_WINDOW = 32  # images of one stream in flight; the client is slowed down beyond that


def parse_compare(content: bytes) -> pb.CompareRequest:
    """The request in a message. Raises DecodeError, and TooLarge for too many bytes beside the image."""
    image = pb.ClassifyRequest.FromString(content).image  # the same field, and no list
    if len(content) - len(image) > _MAX_NAMES_BYTES:
        raise TooLarge(f"the message has {len(content) - len(image):,} bytes beside the image; send 1 MiB at most")
    return pb.CompareRequest.FromString(content)


class Servicer(ClassifierServicer):
    """`topfive.v1.Classifier`. A cancelled call cancels its work: grpc.aio cancels the coroutine.

    Unary methods raise their errors, with which `MessageLimit` ends the call.
    """

    def __init__(self, data_plane: DataPlane, in_flight: RequestsInFlight) -> None:
        self._data_plane = data_plane
        self._in_flight = in_flight

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyReply:
        return await self._classify(request, begin_request(request.request_id), self._in_flight.deadline(context))

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyRequest], context: Context
    ) -> AsyncIterator[pb.ClassifyStreamReply]:
        """Classify many images, up to a window of them at once, and answer in order."""
        window = asyncio.Semaphore(_STREAM_WINDOW)
        replies: asyncio.Queue[asyncio.Task[pb.ClassifyStreamReply] | None] = asyncio.Queue()
        running: set[asyncio.Task[pb.ClassifyStreamReply]] = set()

        async def read() -> None:
            async for request in requests:
                await window.acquire()
                task = asyncio.create_task(self._reply(request, self._in_flight.deadline(context)))
                running.add(task)
                task.add_done_callback(running.discard)
                replies.put_nowait(task)

        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: replies.put_nowait(None))
        try:
            while (task := await replies.get()) is not None:
                yield await task
                window.release()
            reader.result()  # raises the error that ended the reading early
        finally:
            reader.cancel()
            for task in running:
                task.cancel()

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareReply:
        identity = begin_request(request.request_id)
        image = request.image  # each access of the field copies it
        with self._in_flight.accepted(len(image)):
            options = _options(request, self._in_flight.deadline(context))
            comparison = await self._data_plane.compare(image, request.models, options)
        return converters.compare_reply(identity, comparison)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsReply:
        begin_request(None)
        return converters.list_models_reply(await self._data_plane.models())

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelReply:
        begin_request(None)
        return converters.get_model_reply(await self._data_plane.model(request.name, _version(request)))

    async def GetLayers(self, request: pb.GetLayersRequest, context: Context) -> pb.GetLayersReply:
        begin_request(None)
        known = await self._data_plane.layers(request.name, _version(request))
        return await asyncio.to_thread(converters.get_layers_reply, known)  # of hundreds of layers

    async def _classify(self, request: pb.ClassifyRequest, identity: str, deadline: float) -> pb.ClassifyReply:
        image = request.image  # each access of the field copies it
        with self._in_flight.accepted(len(image)):
            options = _options(request, deadline, _version(request))
            answer = await self._data_plane.classify(image, request.model or None, options)
        return converters.classify_reply(identity, answer)

    async def _reply(self, request: pb.ClassifyRequest, deadline: float) -> pb.ClassifyStreamReply:
        """The answer to one image of a stream. An error ends only that image, not the stream."""
        identity = begin_request(request.request_id)
        try:
            with admitted():
                reply = await self._classify(request, identity, deadline)
            return pb.ClassifyStreamReply(request_id=identity, reply=reply)
        except Exception as error:
            return pb.ClassifyStreamReply(request_id=identity, error=describe(error, identity))


def _version(request: pb.ClassifyRequest | pb.GetModelRequest | pb.GetLayersRequest) -> int | None:
    return request.version if request.HasField("version") else None


def _options(
    request: pb.ClassifyRequest | pb.CompareRequest, deadline: float, version: int | None = None
) -> ClassifyOptions:
    return ClassifyOptions(
        deadline,
        request.top_k if request.HasField("top_k") else None,
        request.crops if request.HasField("crops") else DEFAULT_CROPS,
        version,
    )
