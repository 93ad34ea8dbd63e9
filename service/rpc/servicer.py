"""The gRPC calls: each reads its message, calls the data plane, and answers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer
from service.common.api_keys import admitted
from service.common.clock import Clock
from service.common.errors import ShuttingDown, TopfiveError
from service.common.metrics import UNKNOWN, Metrics
from service.common.request_id import begin_request
from service.common.types import DEFAULT_CROPS, ImageLimits, check_size
from service.common.upload_budget import UploadBudget
from service.inference.dataplane import ClassifyOptions, DataPlane
from service.rpc import converters
from service.rpc.errors import Context, describe

_STREAM_WINDOW = 32  # images of one stream in flight; the client is slowed down beyond that


class Servicer(ClassifierServicer):
    """`topfive.v1.Classifier`. A cancelled call cancels its work: grpc.aio cancels the coroutine.

    Unary methods raise their errors, with which `MessageLimit` ends the call.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        *,
        limits: ImageLimits,
        budget: UploadBudget,
        timeout_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._data_plane = data_plane
        self._limits = limits
        self._metrics = metrics
        self._budget = budget
        self._timeout_s = timeout_s
        self._clock = clock
        self._owed = 0
        self._closing = False

    @property
    def owed(self) -> int:
        """Images accepted and not answered yet."""
        return self._owed

    def close(self) -> None:
        """Refuse every image from now on; those accepted are still answered."""
        self._closing = True

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyReply:
        return await self._classify(request, begin_request(request.request_id), self._deadline(context))

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
                task = asyncio.create_task(self._reply(request, self._deadline(context)))
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
        with self._accepted(len(image)):
            options = _options(request, self._deadline(context))
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
        with self._accepted(len(image)):
            options = _options(request, deadline, _version(request))
            answer = await self._data_plane.classify(image, request.model or None, options)
        return converters.classify_reply(identity, answer)

    @contextmanager
    def _accepted(self, size_bytes: int) -> Iterator[None]:
        """Count an accepted image and its bytes. Counts and raises ShuttingDown, TooLarge or Overloaded."""
        with self._budget.share() as take:
            try:
                if self._closing:
                    raise ShuttingDown
                check_size(size_bytes, self._limits)
                take(size_bytes)
            except TopfiveError as error:
                self._metrics.answered(UNKNOWN, error.code)  # the data plane never sees, so never counts, this one
                raise
            self._owed += 1
            try:
                yield
            finally:
                self._owed -= 1

    async def _reply(self, request: pb.ClassifyRequest, deadline: float) -> pb.ClassifyStreamReply:
        """The answer to one image of a stream. An error ends only that image, not the stream."""
        identity = begin_request(request.request_id)
        try:
            with admitted():
                reply = await self._classify(request, identity, deadline)
            return pb.ClassifyStreamReply(request_id=identity, reply=reply)
        except Exception as error:
            return pb.ClassifyStreamReply(request_id=identity, error=describe(error, identity))

    def _deadline(self, context: Context) -> float:
        """The caller's deadline, at most the server's timeout from now."""
        left_s = context.time_remaining()
        return self._clock.now() + min(self._timeout_s, self._timeout_s if left_s is None else left_s)


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
