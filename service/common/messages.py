"""Dataclasses as protobuf messages and back, by the names of their fields, which are not listed anywhere else.

A pydantic model counts as a dataclass. What converts a class is made at its first use and kept.
"""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_Get = Callable[[Any], Any]
_NONE: frozenset[str] = frozenset()


def to_message(message: type[M], source: object, **given: object) -> M:
    """A message with the `given` fields; every other field has the value that it has in the dataclass `source`.

    None leaves a field unset. A field that is a message and that `source` does not have takes its own fields from
    `source`: `ModelInfo.model` holds a part of a `ModelSummary`.
    """
    cls: Any = type(source)
    writers = _writers(cls, message.DESCRIPTOR, frozenset(given))
    return message(**given, **{name: write(source) for name, write in writers})


def from_message(cls: type[T], message: Message, **given: object) -> T:
    """The inverse of `to_message`: a dataclass `cls` with the `given` fields, all others from `message`.

    A field that may be None is None where the message does not set it. Where the message cannot tell whether it is
    set, 0 and empty are None.
    """
    readers = _readers(cls, message.DESCRIPTOR, frozenset(given))  # type: ignore[arg-type]  # a class has a hash
    return cls(**given, **{name: read(message) for name, read in readers})


@cache
def _writers(cls: Any, message: Descriptor, given: frozenset[str] = _NONE) -> Sequence[tuple[str, _Get]]:
    """The fields of the message without the given ones, each with what gets its value from a `cls`."""
    hints = _hints(cls)
    own = [
        (field.name, _writer(attrgetter(field.name), _class(hints[field.name]), field))
        for field in message.fields
        if field.name in hints and field.name not in given
    ]
    return own + [(part.name, _writer(_itself, cls, part)) for part in _parts(message, hints.keys() | given)]


def _writer(get: _Get, cls: Any, field: FieldDescriptor) -> _Get:
    """What takes the value that `get` gets into the field: of a `cls` its fields, by the names that the message has."""
    if field.message_type is None:
        return get
    writers = _writers(cls, field.message_type)

    def write(value: object) -> dict[str, Any] | None:
        return None if value is None else {name: part(value) for name, part in writers}

    if field.is_repeated:
        return lambda source: [write(item) for item in get(source)]
    return lambda source: write(get(source))


@cache
def _readers(cls: Any, message: Descriptor, given: frozenset[str] = _NONE) -> Sequence[tuple[str, _Get]]:
    """The fields of a `cls` without the given ones, each with what gets its value from the message."""
    hints = _hints(cls)
    own = hints.keys() | given
    return [(name, _reader(hint, *_find(name, message, own))) for name, hint in hints.items() if name not in given]


def _reader(hint: Any, path: str, field: FieldDescriptor) -> _Get:
    """What gets a value of the type `hint` from a message that has the field at `path`."""
    get, read = attrgetter(path), _value_reader(hint, path, field)
    if NoneType not in get_args(hint):
        return read
    outer, _, name = path.rpartition(".")
    owner = attrgetter(outer) if outer else _itself
    is_set: _Get = (lambda message: owner(message).HasField(name)) if field.has_presence else get
    return lambda message: read(message) if is_set(message) else None


def _value_reader(hint: Any, path: str, field: FieldDescriptor) -> _Get:
    """The same where the field is set."""
    get, cls = attrgetter(path), _class(hint)
    convert: _Get = cls if issubclass(cls, Enum) else _itself
    if field.message_type is not None:
        convert = _builder(cls, field.message_type)
    if field.is_repeated:
        return lambda message: tuple([convert(item) for item in get(message)])
    return get if convert is _itself else lambda message: convert(get(message))


def _builder(cls: Any, message: Descriptor) -> _Get:
    """What makes a `cls` from the message; a dataclass by position, which is quicker than by name."""
    readers = _readers(cls, message)
    gets = [get for _, get in readers]
    by_position = is_dataclass(cls)
    if by_position:
        return lambda message: cls(*[get(message) for get in gets])
    return lambda message: cls(**{name: get(message) for name, get in readers})


def _itself(value: Any) -> Any:
    return value


def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}


def _class(hint: Any) -> Any:
    """X, for the types X, `X | None`, `tuple[X, ...]` and `tuple[X, X] | None`."""
    while arguments := get_args(hint):
        hint = arguments[0]
    return hint


def _parts(message: Descriptor, own: Set[str]) -> list[FieldDescriptor]:
    """The fields of the message that are messages with some of a dataclass's `own` fields."""
    return [one for one in message.fields if one.message_type and not one.is_repeated and one.name not in own]


def _find(name: str, message: Descriptor, own: Set[str]) -> tuple[str, FieldDescriptor]:
    """The path to the field of that name, in the message or in a part of it, and the field."""
    if name in message.fields_by_name:
        return name, message.fields_by_name[name]
    for part in _parts(message, own):
        assert part.message_type is not None
        with suppress(LookupError):
            path, field = _find(name, part.message_type, own)
            return f"{part.name}.{path}", field
    raise LookupError(f"{message.full_name} has no field {name}")
