"""From the service's types to messages and back, without a loss in any field."""

from collections.abc import Callable, Iterator
from enum import Enum
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.message import Message
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models.catalog import InputSpec
from service.common.model_info import ModelDetail, ModelLayers, ModelList
from service.common.types import Classification
from service.gateway import converters as back
from service.inference.comparison import Comparison
from service.rpc import converters as there

CONVERTERS: dict[type, tuple[Callable[..., Message], Callable[..., object]]] = {
    Classification: (lambda answer: there.classify_reply("id", answer), back.classification),
    Comparison: (lambda comparison: there.compare_reply("id", comparison), back.comparison),
    ModelList: (there.list_models_reply, back.model_list),
    ModelDetail: (there.get_model_reply, back.model_detail),
    ModelLayers: (there.get_layers_reply, back.model_layers),
}
WITHOUT_PRESENCE = {"version", "weights", "sha256"}
"""Fields that the contract cannot tell from 0 or empty, which are None on the other side."""


def values(hint: Any, least: int) -> st.SearchStrategy[Any]:
    """Values of that type that a message can have. With `least` = 1 every field of them is set."""
    options = get_args(hint)
    if NoneType in options:
        return values(options[0], least) if least else st.none() | values(options[0], least)
    if get_origin(hint) is UnionType:  # a row's answer or error: the answer
        return values(options[0], least)
    if get_origin(hint) is tuple:
        some = st.lists(values(options[0], least), min_size=least, max_size=2).map(tuple)
        return some if ... in options else st.tuples(*(values(option, least) for option in options))
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    scalars: dict[type, st.SearchStrategy[Any]] = {
        bool: st.just(True) if least else st.booleans(),
        int: st.integers(least, 2**32 - 1),
        float: st.floats(min_value=least or None, width=32, allow_nan=False),
        str: st.text(min_size=least, max_size=5),
    }
    return scalars[hint] if hint in scalars else fields_of(hint, least)


def fields_of(cls: type, least: int) -> st.SearchStrategy[Any]:
    """Values of a dataclass or a pydantic model."""
    hints = {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}
    parts = {name: values(hint, least) for name, hint in hints.items()}
    for name in WITHOUT_PRESENCE & hints.keys():
        if NoneType in (options := get_args(hints[name])) and not least:
            parts[name] = st.none() | values(options[0], 1)
    if cls is InputSpec:
        parts["mean"] = parts["std"] = st.tuples(*[st.integers(1, 999).map(lambda thousandth: thousandth / 1000)] * 3)
    return st.builds(cls, **parts)


def sent(message: Any) -> Any:
    """The message as it arrives."""
    return type(message).FromString(message.SerializeToString())


def unset(message: Message, path: str = "") -> Iterator[str]:
    """Fields that no instance in `message` sets, by their path; of an item of a list, that no item sets."""
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        where = f"{path}.{field.name}"
        if field.name not in present:
            yield where
        elif field.message_type is not None:
            value = getattr(message, field.name)
            items = [value] if isinstance(value, Message) else list(value)
            missing = [set(unset(item, where)) for item in items]
            yield from set.intersection(*missing)


@pytest.mark.parametrize("cls", CONVERTERS)
@settings(max_examples=30, deadline=None, phases=[Phase.generate])  # values are large: shrinking one takes minutes
@given(data=st.data())
def test_round_trip(cls: type, data: st.DataObject) -> None:
    """A value arrives as it was sent."""
    value = data.draw(values(cls, 0))
    to, back_again = CONVERTERS[cls]

    assert back_again(sent(to(value))) == value


@pytest.mark.parametrize("cls", CONVERTERS)
@settings(max_examples=1, deadline=None)  # the simplest value has every field
@given(data=st.data())
def test_every_field_of_the_contract(cls: type, data: st.DataObject) -> None:
    """The message of a value that has every field has every field too; a row has an answer or an error."""
    message = CONVERTERS[cls][0](data.draw(values(cls, 1)))
    expected = {".rows.answer.request_id", ".rows.error"} if cls is Comparison else set()  # the reply has the id

    assert set(unset(message)) == expected
