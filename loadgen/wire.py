"""Protocol buffers as bytes, as far as a load generator needs them: its requests are made once, replies only looked at.

The encoding is that of https://protobuf.dev/programming-guides/encoding/. Numbers of fields are those of the Open
Inference Protocol, `open_inference_grpc.proto`.
"""

from collections.abc import Iterator, Sequence

from loadgen.connection import LoadError
from loadgen.tensors import Datatype, Tensor

_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """A number, seven bits a byte; a negative one as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sized(number: int, value: bytes | str) -> bytes:
    """A field of bytes, text or a message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _SIZED) + varint(len(data)) + data


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field in order; a fixed one as its bytes. Raises LoadError where that is no message."""
    at = 0
    while at < len(message):
        tag, at = _read(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _read(message, at)
            yield tag >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if kind == _SIZED:
            size, at = _read(message, at)
        if size < 0 or at + size > len(message):
            raise LoadError("the server's gRPC reply is no message of the Open Inference Protocol")
        yield tag >> 3, message[at : at + size]
        at += size


def infer_request(model: str, tensor: Tensor) -> bytes:
    """ModelInferRequest of one raw input."""
    shape = b"".join(varint(side) for side in tensor.shape)
    given = sized(1, tensor.name) + sized(2, tensor.datatype) + sized(3, shape)
    return sized(1, model) + sized(5, given) + sized(7, tensor.raw)


def metadata_request(model: str) -> bytes:
    """ModelMetadataRequest."""
    return sized(1, model)


def inputs_of(reply: bytes) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each input in a ModelMetadataResponse. Raises LoadError."""
    return [_described(value) for number, value in fields(reply) if number == 4 and isinstance(value, bytes)]


def outputs_of(reply: bytes) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each output in a ModelInferResponse. Raises LoadError."""
    return [_described(value) for number, value in fields(reply) if number == 5 and isinstance(value, bytes)]


def statistics_of(reply: bytes) -> list[dict[str, dict[str, int]]]:
    """The `inference_stats` of each version in a ModelStatisticsResponse, as JSON has them. Raises LoadError."""
    names = {1: "success", 3: "queue", 4: "compute_input", 5: "compute_infer", 6: "compute_output"}
    rows = []
    for row in _messages(reply, 1):
        for statistics in _messages(row, 6):
            steps = {name: {"count": 0, "ns": 0} for name in names.values()}
            for number, value in fields(statistics):
                if number in names and isinstance(value, bytes):
                    counted = {place: one for place, one in fields(value) if isinstance(one, int)}
                    steps[names[number]] = {"count": counted.get(1, 0), "ns": counted.get(2, 0)}
            rows.append(steps)
    return rows


def _messages(message: bytes, number: int) -> Sequence[bytes]:
    return [value for place, value in fields(message) if place == number and isinstance(value, bytes)]


def _described(tensor: bytes) -> tuple[str, str, list[int]]:
    name, datatype, shape = "", str(Datatype.FP32), list[int]()
    for number, value in fields(tensor):
        if number == 1 and isinstance(value, bytes):
            name = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes):
            datatype = value.decode("utf-8", "replace")
        elif number == 3 and isinstance(value, bytes):  # packed
            at = 0
            while at < len(value):
                side, at = _read(value, at)
                shape.append(_signed(side))
        elif number == 3 and isinstance(value, int):
            shape.append(_signed(value))
    return name, datatype, shape


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _read(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise LoadError("the server's gRPC reply is no message of the Open Inference Protocol")
