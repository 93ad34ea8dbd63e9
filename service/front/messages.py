"""What a front process and the engine process say to each other, and how it is put into bytes.

Both are of one build and the socket between them is inherited, so the bytes are pickles.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any

from models.catalog import InputSpec
from service.common.errors import EngineError, Overloaded, TopfiveError, error_of
from service.common.types import Preprocessing


@dataclass(frozen=True, slots=True)
class Classify:
    """As of `Classifier.classify`, of an image of so many bytes."""

    size_bytes: int
    model: str | None
    top_k: int | None
    crops: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Compare:
    """As of `Classifier.compare`, of an image of so many bytes."""

    size_bytes: int
    models: tuple[str, ...]
    top_k: int | None
    crops: int
    deadline: float


@dataclass(frozen=True, slots=True)
class ListModels:
    """As of `Directory.models`."""


@dataclass(frozen=True, slots=True)
class GetModel:
    """As of `Directory.model`."""

    name: str


@dataclass(frozen=True, slots=True)
class GetLayers:
    """As of `Directory.layers`."""

    name: str


@dataclass(frozen=True, slots=True)
class GetMetrics:
    """The metrics of the whole service as text."""


Question = Classify | Compare | ListModels | GetModel | GetLayers | GetMetrics


@dataclass(frozen=True, slots=True)
class Listening:
    """From a front: it takes connections."""


@dataclass(frozen=True, slots=True)
class Asked:
    """From a front: a question under a number of its own, for the request of that identity."""

    call: int
    identity: str
    question: Question


@dataclass(frozen=True, slots=True)
class Left:
    """From a front: nobody waits for that call any more."""

    call: int


@dataclass(frozen=True, slots=True)
class Counted:
    """From a front: it refused a request itself, with that code."""

    model: str
    code: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """From the engine process: the crops of that call's photo for each spec; after the `last` the pixels may go.

    `recipes` are the specs as `packed_specs` gives them: there are few, and each is asked for again and again.
    """

    call: int
    cut: int
    recipes: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Crops:
    """`service.preprocessing.interface.Prepared` without the samples themselves."""

    shape: tuple[int, ...]
    preprocessing: Preprocessing
    took_s: float


@dataclass(frozen=True, slots=True)
class Made:
    """From a front: the crops for each spec, one after the other, in its region from `where` on; or they are `where`.

    `spent_s` is the time of all threads for this photo so far.
    """

    call: int
    cut: int
    where: int | bytes
    crops: tuple[Crops, ...]
    spent_s: float


@dataclass(frozen=True, slots=True)
class NotMade:
    """From a front: why there are no such crops."""

    call: int
    cut: int
    error: TopfiveError


@dataclass(frozen=True, slots=True)
class Freed:
    """From the engine process: nobody reads what lies at these offsets any more."""

    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """From the engine process: the answer to that call, of the type that its question asks for.

    That of a directory is `packed` once more, because it is long: threads on both sides do that.
    """

    call: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """From the engine process: why that call has no answer."""

    call: int
    error: TopfiveError


@dataclass(frozen=True, slots=True)
class Standing:
    """From the engine process: what `Directory.check_alive` and `Directory.check_ready` raise now, None where nothing.

    A front repeats it to whoever asks.
    """

    alive: TopfiveError | None
    ready: TopfiveError | None


@dataclass(frozen=True, slots=True)
class Stop:
    """From the engine process: take no new connection, answer what was accepted, end. A second one: end at once."""


@dataclass(frozen=True, slots=True)
class Beat:
    """From both: this process's event loop turns."""


FromFront = Listening | Asked | Left | Counted | Made | NotMade | Beat
FromEngine = Wanted | Freed | Answered | Refused | Standing | Stop | Beat
Message = FromFront | FromEngine

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


class _Reducers(dict[type, Callable[[Any], Reduced]]):
    """How pickle takes things apart: dataclasses by their fields, in a third of the time of its own way; errors by
    what the table of errors has of them."""

    def __missing__(self, kind: type) -> Callable[[Any], Reduced]:
        reducer: Callable[[Any], Reduced]
        if issubclass(kind, Exception):
            reducer = _error
        elif issubclass(kind, Enum):
            reducer = _by_value
        elif is_dataclass(kind):
            reducer = _by_fields(kind)
        else:
            raise KeyError(kind)  # pickle knows it
        self[kind] = reducer
        return reducer


def _by_fields(kind: type) -> Callable[[Any], Reduced]:
    names = [field.name for field in fields(kind)]
    if len(names) > 1:
        values = attrgetter(*names)
        return lambda one: (kind, values(one))
    return lambda one: (kind, tuple(getattr(one, name) for name in names))


def _by_value(one: Enum) -> Reduced:
    return type(one), (one.value,)


def _error(error: Exception) -> Reduced:
    if not isinstance(error, TopfiveError):  # the log of its process has it
        return EngineError, ("unexpected error",)
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return error_of, (error.code, error.detail, retry_after_s)


class _Pickler(pickle.Pickler):
    dispatch_table = _Reducers()


_LENGTH_BYTES = 4


def packed(value: object) -> bytes:
    """Any value of the service as bytes. Of a long one this takes longer than the event loop may be kept."""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """The value that `packed` was given."""
    return pickle.loads(data)


@lru_cache(maxsize=256)
def packed_specs(specs: tuple[InputSpec, ...]) -> bytes:
    """Specs as bytes."""
    return packed(specs)


@lru_cache(maxsize=256)
def unpacked_specs(recipes: bytes) -> tuple[InputSpec, ...]:
    """The specs that `packed_specs` was given."""
    specs: tuple[InputSpec, ...] = unpacked(recipes)
    return specs


def framed(message: Message) -> bytes:
    """The message as bytes that say how many they are."""
    content = packed(message)
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


class Unframed:
    """Takes bytes as they come, and gives the messages that are whole."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that end in `data`, in order."""
        data = self._kept + data if self._kept else data
        view = memoryview(data)
        begin = 0
        while len(data) - begin >= _LENGTH_BYTES:
            end = begin + _LENGTH_BYTES + int.from_bytes(view[begin : begin + _LENGTH_BYTES], "little")
            if end > len(data):
                break
            yield pickle.loads(view[begin + _LENGTH_BYTES : end])
            begin = end
        self._kept = data[begin:]
