"""The libraries under this server and nothing else: uvicorn and grpc.aio, whose handlers take a photo and answer.

What they cost is a part of what any service on them costs.
"""

import asyncio

import click
import grpc
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.spent import serve_spent
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server

_REPLY = b'{"predictions": [%s]}' % b", ".join([b'{"class_id": 340, "probability": 0.2}'] * 5)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REPLY))]


class BareServicer(ClassifierServicer):
    """Answers every call with the same five classes."""

    async def Classify(  # noqa: N802 - the name in the contract
        self, request: pb.ClassifyRequest, _context: "grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyReply]"
    ) -> pb.ClassifyReply:
        assert request.image
        return pb.ClassifyReply(predictions=[pb.Prediction(class_id=340, probability=0.2)] * 5)


async def bare_app(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every HTTP request with the same five classes."""
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _REPLY})


async def serve(port: int) -> None:
    """Serve REST on `port`, gRPC on the next one, and what was spent on the one after it, until SIGTERM."""
    rpc = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    add_ClassifierServicer_to_server(BareServicer(), rpc)  # type: ignore[no-untyped-call]
    rpc.add_insecure_port(f"127.0.0.1:{port + 1}")
    await rpc.start()
    rest = uvicorn.Server(uvicorn.Config(bare_app, port=port, lifespan="off", log_config=None, access_log=False))
    await asyncio.gather(rest.serve(), serve_spent(port + 2))


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    """Serve for `benchmarks.overhead`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port))


if __name__ == "__main__":
    main()
