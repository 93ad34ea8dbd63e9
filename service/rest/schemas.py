"""The parameters and replies of the REST interface, as clients and the OpenAPI document see them.

Most replies are dataclasses of the service; this module has the parameters, and what only REST adds.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema

from service.common.errors import BadRequest, TooLarge
from service.common.types import DEFAULT_CROPS, DEFAULT_TOP_K, Classification, copy_as
from service.inference.comparison import Agreement, ClassName, Comparison, ComparisonTiming

# Of JSON with tensors. Python reads no other request meanwhile: 8 MiB of `[],[],` took seconds and 260 MiB.
_MOST_IN_JSON = ((b",", "values", 1_000_000), (b"[", "lists", 200_000), (b"{", "objects", 2_000))

LONG_BODY = 1 << 20
"""Bytes of a body that take milliseconds to parse."""

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_Crops = Annotated[
    int,
    Field(
        json_schema_extra={"enum": [1, 10]}, description="1, or 10: the average over corners, centre and their mirrors"
    ),
]
_TopK = Annotated[
    int | SkipJsonSchema[None],
    Field(
        json_schema_extra={"minimum": 1, "maximum": 1000},  # the document's; a model's own classes are the limit
        description=f"How many classes of the model, best first; {DEFAULT_TOP_K}, or all if there are fewer",
    ),
]

Version = Annotated[
    int | SkipJsonSchema[None],
    Field(
        json_schema_extra={"minimum": 1},
        description="An exported version of the model; else the server's choice, the newest unless another was loaded",
    ),
]


class ImageQuery(BaseModel):
    """The parameters of a request with an image. Those in `repeated` may be given more than once."""

    repeated: ClassVar[frozenset[str]] = frozenset()

    model: object = None
    top_k: _TopK = None
    crops: _Crops = DEFAULT_CROPS


class PredictQuery(ImageQuery):
    """The parameters of `POST /predict`."""

    model: Annotated[
        str | SkipJsonSchema[None], Field(description="A name from /models, or ensemble:a+b; else the server's default")
    ] = None
    version: Version = None


class CompareQuery(ImageQuery):
    """The parameters of `POST /compare`."""

    repeated = frozenset({"model"})

    model: Annotated[
        list[str] | SkipJsonSchema[None],
        Field(description="Names as of /predict, repeated or with commas; else all loaded models"),
    ] = None


@dataclass(frozen=True)  # without slots: a class may have only one base with slots
class _Identified:
    request_id: str


@dataclass(frozen=True, slots=True)
class PredictReply(
    Classification, _Identified
):  # the id comes first: fields are ordered from the last base to the first
    """The answer to one image."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why one model of a comparison has no answer. `code` is the one that /predict gives for the same error."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class CompareRow:
    """One model of a comparison, by its name in the request. It has an answer or an error; the other is null."""

    model: str
    answer: Classification | None
    error: RowProblem | None


@dataclass(frozen=True, slots=True)
class CompareReply:
    """The answers of many models to one image: each model once, in the order of the request."""

    request_id: str
    rows: tuple[CompareRow, ...]
    agreement: Annotated[
        tuple[Agreement, ...],
        Field(description="The best class of each model, the most frequent first; without models of other classes"),
    ]
    common: Annotated[
        tuple[ClassName, ...],
        Field(description="Classes among the best of every model in `agreement`, most probable first"),
    ]
    timing_ms: ComparisonTiming
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class About:
    """What answers here, and the paths of its documentation."""

    name: str
    version: str
    docs: str
    openapi: str


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the server."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error, as RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str


def compare_reply(request_id: str, comparison: Comparison, problems: Sequence[RowProblem | None]) -> CompareReply:
    """The reply for a comparison, with a problem for each row that has no answer."""
    rows = [
        CompareRow(row.model, row.result if isinstance(row.result, Classification) else None, problem)
        for row, problem in zip(comparison.rows, problems, strict=True)
    ]
    return copy_as(CompareReply, comparison, request_id=request_id, rows=tuple(rows))


def validated(kind: type[M], content: bytes) -> M:
    """The object in the JSON of a request. Raises BadRequest, and TooLarge if it would take long to read.

    Lists of `kind` need a `max_length`, tuples `FailFast`: a wrong element costs a hundred times as much as a value.
    """
    for sign, what, most in _MOST_IN_JSON:
        if (count := content.count(sign)) > most:
            raise TooLarge(f"the JSON has {count:,} {what} of at most {most:,}; send fewer images, or them in binary")
    try:
        with _uncollected():
            return kind.model_validate_json(content)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors()[:4]]
        raise BadRequest("; ".join(reasons)) from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage during the block: that is most of the time in which nested lists are read."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def digits(probability: float) -> float:
    """The probability with the seven digits that a float32 holds."""
    return float(f"{probability:.7g}")


def to_json(reply: object) -> bytes:
    """The JSON of a reply, which is a dataclass."""
    return _adapter(type(reply)).dump_json(reply)


def from_json(cls: type[T], content: bytes) -> T:
    """The reply of class `cls` in JSON of another server. Raises ValidationError."""
    reply: T = _adapter(cls).validate_json(content)
    return reply


def to_dict(reply: object) -> dict[str, Any]:
    """The JSON values of a reply."""
    values: dict[str, Any] = _adapter(type(reply)).dump_python(reply, mode="json")
    return values


_adapter: Callable[[type], TypeAdapter[Any]] = cache(TypeAdapter)
for _reply in (PredictReply, CompareReply, Problem):
    _adapter(_reply)  # takes milliseconds, for which the first request must not block the event loop
