"""The libraries under this server and nothing else: uvicorn and grpc.aio with one handler each, which take a photo and
give the same answer at once. What they cost is in what any service on them costs; `benchmarks.spending` tells it.
"""

import asyncio
import socket

import grpc
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.spending import tell
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server

_REPLY = b'{"predictions": [%s]}' % b", ".join([b'{"class_id": 340, "probability": 0.2}'] * 5)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REPLY))]


class Bare(ClassifierServicer):
    """Has the photo, and answers."""

    async def Classify(  # noqa: N802 - the name in the contract
        self, request: pb.ClassifyRequest, _context: "grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyReply]"
    ) -> pb.ClassifyReply:
        """Five times the same class."""
        assert request.image
        return pb.ClassifyReply(predictions=[pb.Prediction(class_id=340, probability=0.2)] * 5)


async def bare(_scope: Scope, receive: Receive, send: Send) -> None:
    """The same over HTTP."""
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _REPLY})


async def serve() -> None:
    """On free ports, until the standard input ends."""
    rpc = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    add_ClassifierServicer_to_server(Bare(), rpc)  # type: ignore[no-untyped-call]
    grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rest = uvicorn.Server(uvicorn.Config(bare, lifespan="off", log_config=None, access_log=False))
        serving = asyncio.create_task(rest.serve(sockets=[listener]))
        await tell({"port": listener.getsockname()[1], "grpc_port": grpc_port})
        rest.should_exit = True
        await serving
    await rpc.stop(None)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
