"""Converts dataclasses to protobuf messages and back, by field name.

A pydantic model counts as a dataclass. The converter of a class is made once, at its first use, because every answer
to an image is converted.
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
    """A message with the `given` fields. The other fields are copied from the dataclass `source`.

    None leaves a field unset. If a nested message has no field of its name in `source`, its own fields are taken from
    `source`: `ModelInfo.model` holds some fields of a `ModelSummary`.
    """
    cls: Any = type(source)
    writers = _writers(cls, message.DESCRIPTOR, frozenset(given))
    return message(**given, **{name: write(source) for name, write in writers})


def from_message(cls: type[T], message: Message, **given: object) -> T:
    """A dataclass `cls` with the `given` fields. The other fields are copied from `message`.

    An optional field is None if the message does not set it, or, without presence, if it is 0 or empty. Raises
    LookupError if the message has no field of that name.
    """
    readers = _readers(cls, message.DESCRIPTOR, frozenset(given))  # type: ignore[arg-type]  # a class has a hash
    return cls(**given, **{name: read(message) for name, read in readers})


@cache
def _writers(cls: Any, message: Descriptor, given: frozenset[str] = _NONE) -> Sequence[tuple[str, _Get]]:
    """For each field of the message its name and the function that gets its value from a `cls`."""
    hints = _hints(cls)
    own = [
        (field.name, _writer(attrgetter(field.name), _class(hints[field.name]), field))
        for field in message.fields
        if field.name in hints and field.name not in given
    ]
    return own + [(part.name, _writer(_itself, cls, part)) for part in _parts(message, hints.keys() | given)]


def _writer(get: _Get, cls: Any, field: FieldDescriptor) -> _Get:
    """The function that gets the value of `field` in protobuf form. `get` gets it as the dataclass has it."""
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
    """For each field of `cls` its name and the function that gets its value from the message."""
    hints = _hints(cls)
    own = hints.keys() | given
    return [(name, _reader(hint, *_find(name, message, own))) for name, hint in hints.items() if name not in given]


def _reader(hint: Any, path: str, field: FieldDescriptor) -> _Get:
    """The function that gets a value of type `hint` from the field at the dotted `path` of a message."""
    get, read = attrgetter(path), _value_reader(hint, path, field)
    if NoneType not in get_args(hint):
        return read
    outer, _, name = path.rpartition(".")
    owner = attrgetter(outer) if outer else _itself
    is_set: _Get = (lambda message: owner(message).HasField(name)) if field.has_presence else get
    return lambda message: read(message) if is_set(message) else None


def _value_reader(hint: Any, path: str, field: FieldDescriptor) -> _Get:
    """The same as `_reader`, for a field that the message sets."""
    get, cls = attrgetter(path), _class(hint)
    convert: _Get = cls if issubclass(cls, Enum) else _itself
    if field.message_type is not None:
        convert = _builder(cls, field.message_type)
    if field.is_repeated:
        return lambda message: tuple([convert(item) for item in get(message)])
    return get if convert is _itself else lambda message: convert(get(message))


def _builder(cls: Any, message: Descriptor) -> _Get:
    """The function that makes a `cls` from the message."""
    readers = _readers(cls, message)
    gets = [get for _, get in readers]
    by_position = is_dataclass(cls)  # faster than by name
    if by_position:
        return lambda message: cls(*[get(message) for get in gets])
    return lambda message: cls(**{name: get(message) for name, get in readers})


def _itself(value: Any) -> Any:
    return value


def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}


def _class(hint: Any) -> Any:
    """The class X in the types `X`, `X | None`, `tuple[X, ...]` and `tuple[X, X] | None`."""
    while arguments := get_args(hint):
        hint = arguments[0]
    return hint


def _parts(message: Descriptor, own: Set[str]) -> list[FieldDescriptor]:
    """The nested messages that the dataclass does not have as a field (`own`), and so hold some of its fields."""
    return [one for one in message.fields if one.message_type and not one.is_repeated and one.name not in own]


def _find(name: str, message: Descriptor, own: Set[str]) -> tuple[str, FieldDescriptor]:
    """The dotted path to the field `name`, which may be in a nested message, and the field."""
    if name in message.fields_by_name:
        return name, message.fields_by_name[name]
    for part in _parts(message, own):
        assert part.message_type is not None
        with suppress(LookupError):
            path, field = _find(name, part.message_type, own)
            return f"{part.name}.{path}", field
    raise LookupError(f"{message.full_name} has no field {name}")
