"""Reads `recipe.toml`, which describes the input of an imported network.

The network gets `(pixel / scale - mean) / std` of each channel, with `mean` and `std` in its own channel order. The
graph of an artifact divides by 255 instead, so `InputSpec` holds `mean * scale / 255` and `std * scale / 255`.
"""

import tomllib
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from export.common import ExportError
from models.catalog import Channels, InputSpec, Interpolation

_LARGEST_SIDE = 4096
_LARGEST_NUMBER, _LEAST_STD = 1e6, 1e-30  # so that no pixel becomes too large for float32

Triple = tuple[float, float, float]


class RecipeError(ExportError):
    """The recipe is wrong; the message names the key and what to write."""


class Output(StrEnum):
    """The output of the network: logits, which need a softmax, or probabilities."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The keys of the file; None for a key that is left out and whose default depends on the network."""

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation = Interpolation.BILINEAR
    channels: Channels = Channels.RGB
    scale: int | None = None
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    output: Output = Output.LOGITS
    output_name: str | None = None

    def input_spec(self, size: int, scale: int) -> InputSpec:
        """The input of an artifact whose network takes `size` x `size` pixels, divided by `scale` first.

        Raises RecipeError if `resize` is smaller than the crop.
        """
        resize = self.resize if self.resize is not None else size
        if resize < size:
            raise RecipeError(f"resize = {resize} is smaller than size = {size}; write resize = {size} or more")
        one, two, three = self.mean
        red, green, blue = self.std
        return InputSpec(
            resize=resize,
            crop=size,
            interpolation=self.interpolation,
            mean=(one * scale / 255, two * scale / 255, three * scale / 255),
            std=(red * scale / 255, green * scale / 255, blue * scale / 255),
            channels=self.channels,
        )


def read_recipe(path: Path) -> Recipe:
    """The recipe in `path`. Raises RecipeError naming the key that does not fit and what to write instead."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f'{path} is not TOML: {error}; each key is there once, with words in quotes: channels = "bgr"'
        ) from error
    try:
        return _recipe(table)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _recipe(table: dict[str, object]) -> Recipe:
    keys = [field.name for field in fields(Recipe)]
    if unknown := [key for key in table if key not in keys]:
        raise RecipeError(f"the key {unknown[0]!r} is unknown; there are {', '.join(keys)}")
    channels = Channels(_choice(table, "channels", Channels))
    recipe = Recipe(
        size=_side(table, "size"),
        resize=_side(table, "resize"),
        interpolation=Interpolation(_choice(table, "interpolation", Interpolation)),
        channels=channels,
        scale=_scale(table),
        mean=_numbers(table, "mean", 0.0, channels),
        std=_numbers(table, "std", 1.0, channels),
        output=Output(_choice(table, "output", Output)),
        output_name=_output_name(table),
    )
    if min(recipe.std) < _LEAST_STD:
        raise RecipeError(f"std must be above 0, {_LEAST_STD:g} at the least; write std = 1 where nothing is divided")
    if recipe.size is not None and recipe.resize is not None and recipe.resize < recipe.size:
        raise RecipeError(
            f"resize = {recipe.resize} is smaller than size = {recipe.size}; write resize = {recipe.size} or more"
        )
    return recipe


def _side(table: dict[str, object], key: str) -> int | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, list):
        raise RecipeError(f"{key} is one number, because only square inputs are served; write {key} = 224")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_SIDE:
        raise RecipeError(f"{key} must be a whole number from 1 to {_LARGEST_SIDE}, as in {key} = 224")
    return value


def _choice(table: dict[str, object], key: str, kind: type[StrEnum]) -> str:
    """The value in the table, or the first of `kind`."""
    names = [member.value for member in kind]
    value = table.get(key, names[0])
    if not isinstance(value, str) or value not in names:
        known = ", ".join(f'"{name}"' for name in names)
        raise RecipeError(f"{key} = {value!r} is unknown; write one of {known}")
    return value


def _scale(table: dict[str, object]) -> int | None:
    value = table.get("scale")
    if value is None:
        return None
    if isinstance(value, bool) or value not in (1, 255):
        raise RecipeError(f"scale = {value!r} is unknown; write 255 for pixels from 0 to 1, or 1 for 0 to 255")
    return 1 if value == 1 else 255


def _numbers(table: dict[str, object], key: str, default: float, channels: Channels) -> Triple:
    """One number for all channels, or a list with one for each."""
    grey = channels is Channels.GREY
    value = table.get(key, default)
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and grey and len(values) != 1:
        raise RecipeError(f"a grey network has one channel; write one number for {key}")
    if not isinstance(value, list) or grey:
        values = values * 3
    fit = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    numbers = [float(one) for one in fit if abs(one) <= _LARGEST_NUMBER]
    if len(values) != 3 or len(numbers) != 3:
        raise RecipeError(
            f"{key} must be one number or three, none beyond {_LARGEST_NUMBER:g}, as in {key} = [0.485, 0.456, 0.406]"
        )
    return numbers[0], numbers[1], numbers[2]


def _output_name(table: dict[str, object]) -> str | None:
    value = table.get("output_name")
    if value is None or (isinstance(value, str) and value):
        return value
    raise RecipeError('output_name must be the name of an output of the graph, as in output_name = "logits"')
