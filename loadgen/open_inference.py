"""The Open Inference Protocol over HTTP: what a model takes, requests of it, and what a server says of its time.

Facts from the specification (open-inference-protocol, `inference_rest.md`) and Triton's extensions of it
`binary_tensor_data` and `statistics`.
"""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from loadgen.connection import LoadError, Outcome
from loadgen.http_client import Answer, get
from loadgen.http_connection import Address
from loadgen.requests import Encoding, post
from loadgen.results import Server
from loadgen.tensors import Datatype, Input, Tensor, only_input

_EXTENSION = "binary_tensor_data"
_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of one server, and how it is asked."""

    address: Address
    name: str
    input: Input
    binary: bool

    @property
    def base(self) -> str:
        """The path of the model."""
        return f"{_root(self.address)}/models/{quote(self.name)}"

    def request(self, tensor: Tensor, path: str) -> bytes:
        """One inference of that tensor, at `path` or where the protocol says."""
        heading: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        where = path or f"{self.base}/infer"
        if not self.binary:
            if tensor.datatype is Datatype.BYTES:
                heading["parameters"] = {"content_type": "base64"}
            body = json.dumps({"inputs": [{**heading, "data": tensor.listed}]}).encode()
            return post(self.address, where, {"Content-Type": "application/json"}, body)
        raw = tensor.raw
        heading["parameters"] = {"binary_data_size": len(raw)}
        said = json.dumps({"inputs": [heading], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", _HEADER: str(len(said))}
        return post(self.address, where, headers, said + raw)

    async def spent(self, timeout_s: float) -> "Spent | None":
        """What the server has spent on the model so far, None where it does not say."""
        try:
            answer = await get(self.address, f"{self.base}/stats", timeout_s)
            if answer.status != 200:
                return None
            return Spent.parse(json.loads(answer.body)["model_stats"])
        except (LoadError, ValueError, LookupError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests answered since the server's start, and the nanoseconds they took in all: by step, and as a whole."""

    requests: int
    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int
    success: int

    @classmethod
    def parse(cls, rows: Any) -> "Spent":
        """Of the versions of a model in the reply of the extension `statistics`."""
        statistics = [row["inference_stats"] for row in rows]
        steps = {name: sum(one[name]["ns"] for one in statistics) for name in cls.__slots__ if name != "requests"}
        return cls(requests=sum(one["success"]["count"] for one in statistics), **steps)

    def __add__(self, other: "Spent") -> "Spent":
        """Of two servers together."""
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def since(self, before: "Spent") -> Server | None:
        """The means between two moments, None where nothing was answered."""
        requests = self.requests - before.requests
        if requests <= 0:
            return None
        queue, given, inference, output, total = (
            (getattr(self, name) - getattr(before, name)) / requests / 1e6
            for name in ("queue", "compute_input", "compute_infer", "compute_output", "success")
        )
        return Server(queue=queue, input=given, inference=inference, output=output, total=total)


async def ask_model(
    address: Address, name: str, encoding: Encoding, datatype: Datatype | None, timeout_s: float
) -> Model:
    """The model as the server describes it. Raises LoadError."""
    path = f"{_root(address)}/models/{quote(name)}"
    metadata = _object(address, path, await get(address, path, timeout_s))
    try:
        inputs = [(one["name"], one["datatype"], [int(side) for side in one["shape"]]) for one in metadata["inputs"]]
    except (LookupError, TypeError, ValueError):
        raise LoadError(f"{address.authority}{path} does not say what the model's inputs are") from None
    binary = encoding is Encoding.BINARY
    if encoding is Encoding.AUTO:
        server = _object(address, _root(address), await get(address, _root(address), timeout_s))
        binary = _EXTENSION in (server.get("extensions") or ())
    return Model(address, name, only_input(name, inputs, datatype), binary)


def _root(address: Address) -> str:
    return f"{address.path.rstrip('/')}/v2"


def _object(address: Address, path: str, answer: Answer) -> dict[str, Any]:
    """The JSON object of a good answer. Raises LoadError."""
    if answer.status != 200:
        said = Outcome("", answer.body).said
        raise LoadError(f"{address.authority}{path} answers {answer.status}: {said or 'nothing'}")
    try:
        said_object = json.loads(answer.body)
    except ValueError:
        said_object = None
    if not isinstance(said_object, dict):
        raise LoadError(f"{address.authority}{path} answers no JSON object; does the server have the /v2 protocol?")
    return said_object
