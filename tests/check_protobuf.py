"""Imports the committed code of the contracts and sends a message through it; run by `make test-protobuf`.

Not a pytest module: it runs in an environment that has a protobuf of another major version and little else.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import google.protobuf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proto.inference import grpc_service_pb2 as v2
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1 import classifier_pb2_grpc
from service.common.messages import from_message, to_message


@dataclass(frozen=True)
class Errors:
    """Some fields of a message, with presence and without."""

    protocol: str
    top1: float | None
    top5: float | None


def main(expected: str) -> None:
    """Exit with a message where the runtime is another one than expected or a message does not survive."""
    if google.protobuf.__version__ != expected:
        sys.exit(f"this is protobuf {google.protobuf.__version__}, not {expected}")
    request = pb.ClassifyRequest(image=b"\x00\xff", model="tiny", top_k=0)
    copy = pb.ClassifyRequest.FromString(request.SerializeToString())
    if copy != request or not copy.HasField("top_k") or not hasattr(classifier_pb2_grpc, "ClassifierStub"):
        sys.exit(f"the message did not survive: {copy}")
    inference = v2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\x00\xff"])
    inference.parameters["timeout"].int64_param = 7
    if v2.ModelInferRequest.FromString(inference.SerializeToString()) != inference:
        sys.exit("a message of the Open Inference Protocol did not survive")
    errors = Errors("single crop", 0.0, None)
    if from_message(Errors, to_message(pb.PublishedErrors, errors)) != errors:
        sys.exit("a dataclass did not survive")
    print(f"the gRPC contracts work with protobuf {expected}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
