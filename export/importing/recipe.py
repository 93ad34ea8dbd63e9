"""Reads `recipe.toml`, which describes the input of an imported network.

The network gets `(pixel / scale - mean) / std` of each channel, with `mean` and `std` in its own channel order. The
graph of an artifact divides by 255 instead, so `InputSpec` holds `mean * scale / 255` and `std * scale / 255`.
"""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from export.common import ExportError
from models.catalog import Channels, InputSpec, Interpolation, ResizeMode

_LARGEST_NUMBER, _LEAST_STD = 1e6, 1e-30  # so that no pixel becomes too large for float32


class RecipeError(ExportError):
    """The recipe is wrong; the message names the key and what to write."""


class Output(StrEnum):
    """The output of the network: logits, which need a softmax, or probabilities."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


def _for_each_channel(value: object) -> object:
    """One number, alone or in a list, counts for all channels."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


Side = Annotated[int, Field(strict=True, ge=1, le=4096)]
Mean = Annotated[float, Field(strict=True, ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER)]
Std = Annotated[float, Field(strict=True, ge=_LEAST_STD, le=_LARGEST_NUMBER)]


class Recipe(BaseModel):
    """The keys of the file; None for a key that is left out and whose default depends on the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Side | None = None
    resize: Side | None = None
    fit: ResizeMode = ResizeMode.SHORTER_SIDE
    interpolation: Interpolation = Interpolation.BILINEAR
    channels: Channels = Channels.RGB
    scale: Literal[1, 255] | None = None
    mean: Annotated[tuple[Mean, Mean, Mean], BeforeValidator(_for_each_channel)] = (0.0, 0.0, 0.0)
    std: Annotated[tuple[Std, Std, Std], BeforeValidator(_for_each_channel)] = (1.0, 1.0, 1.0)
    output: Output = Output.LOGITS
    output_name: Annotated[str, Field(min_length=1)] | None = None

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
            fit=self.fit,
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
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{path}: {key}: {first['msg']}; the keys are {', '.join(Recipe.model_fields)}") from error
    if recipe.channels is Channels.GREY and len({*recipe.mean}) + len({*recipe.std}) > 2:
        raise RecipeError(f"{path}: a grey network has one channel; write one number for mean and for std")
    return recipe
