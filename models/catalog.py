"""The catalog: every architecture that topfive exports, with its metadata. Imports no torch."""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter

_FILE = Path(__file__).parent / "data" / "catalog.toml"
_TAG = "@"  # resnet50@IMAGENET1K_V1: a network with weights other than its default


class Interpolation(StrEnum):
    """The resampling filter of the resize step, with antialiasing as in Pillow."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class ResizeMode(StrEnum):
    """What the resize does: the shorter side gets the length, or both sides do, so that the image is distorted."""

    SHORTER_SIDE = "shorter_side"
    SQUASH = "squash"

    def __str__(self) -> str:
        return "both sides" if self is ResizeMode.SQUASH else "shorter side"


class Channels(StrEnum):
    """The channels that the network takes, made from RGB inside the graph; grey is the luma of ITU-R BT.601."""

    RGB = "rgb"
    BGR = "bgr"
    GREY = "grey"

    @property
    def matrix(self) -> tuple[tuple[float, float, float], ...]:
        """A row per channel of the network: its weights of R, G and B."""
        return {
            Channels.RGB: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            Channels.BGR: ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
            Channels.GREY: ((0.299, 0.587, 0.114),),
        }[self]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image becomes the network's input, in the words of torchvision's `ImageClassification` transform.

    The shorter side, or both (`fit`), become `resize` pixels; the centre `crop` x `crop` pixels are kept. Inside the
    graph the image gets the network's channels, each `(value / 255 - mean) / std`, with the numbers in the order of
    these channels; grey uses the first of the three.
    """

    resize: int = 256
    crop: int = 224
    interpolation: Interpolation = Interpolation.BILINEAR
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: Channels = Channels.RGB
    fit: ResizeMode = ResizeMode.SHORTER_SIDE


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Published weights: their tag, and their accuracy in percent on `dataset`.

    `file` names weights in `models/data`, which come with topfive; others are downloaded, from `urls` if there are any
    and else from torchvision. `sha256` is that of the whole file; None if only the first eight digits are known, which
    are in the name of torchvision's file.
    """

    tag: str
    acc1: float
    acc5: float
    input: InputSpec = InputSpec()
    dataset: str = "ImageNet-1k, validation"
    file: str | None = None
    urls: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedErrors:
    """Error rates in percent that a paper or a competition reports; `protocol` says how and on which images."""

    protocol: str
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the catalog.

    `source` is `torchvision:BUILDER` or `MODULE:FUNCTION`; `options` are the arguments of the builder. `parameters` and
    `macs` (multiply-accumulates of convolutions and fully connected layers for one image) describe the served graph,
    without the submodules in `training_only`; `parameters_train` counts these too. The first of `weight_sets` is the
    default. `untrained_input` is for random weights, None if they take the default's. `stages` are the paper's names of
    the stages, empty if the modules have them. `labels` is a name for `models.labels.named_labels`. `depth` (layers
    with weights), `configuration`, `ilsvrc` (the place in the competition), `published_macs` and `published` are what
    the paper reports.
    """

    name: str
    family: str
    year: int
    paper: str
    source: str
    parameters: int
    macs: int
    parameters_train: int = 0
    weight_sets: tuple[WeightSet, ...] = ()
    untrained_input: InputSpec | None = None
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    training_only: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    classes: int = 1000
    labels: str = "imagenet1k"
    published: tuple[PublishedErrors, ...] = ()
    published_macs: int | None = None
    depth: int | None = None
    configuration: str | None = None
    ilsvrc: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        if not self.parameters_train:  # no auxiliary heads
            object.__setattr__(self, "parameters_train", self.parameters)

    @property
    def default_weights(self) -> WeightSet | None:
        """The weights that `--weights pretrained` takes, or None if none are published."""
        return self.weight_sets[0] if self.weight_sets else None

    @property
    def input(self) -> InputSpec:
        """The input of the default weights, or of the untrained network if none are published."""
        return self.weight_sets[0].input if self.weight_sets else self.untrained_input or InputSpec()


_LONGEST_NAME = 80  # of an unknown name in a message


class UnknownModelError(LookupError):
    """No model has that name; `nearest` holds up to three similar names."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        name = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
        self.name = name
        by_lower = {known.lower(): known for known in names}
        self.nearest = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
        near, all_of_them = f"did you mean {' or '.join(self.nearest)}?", "GET /models or topfive models lists them all"
        hint = near if self.nearest else all_of_them
        super().__init__(f"there is no model {name!r}; {hint}")


class Catalog:
    """A read-only collection of architectures by name, in the given order.

    An architecture with several weight sets has an entry for each: `NAME` with the default set, `NAME@TAG` with
    another. Raises ValueError if two entries have the same name.
    """

    def __init__(self, entries: Iterable[Architecture]) -> None:
        self._entries: dict[str, Architecture] = {}
        self._aliases: dict[str, str] = {}
        for entry in entries:
            self._add(entry)
            for index, weights in enumerate(entry.weight_sets):
                name = f"{entry.name}{_TAG}{weights.tag}"
                if index:
                    self._add(replace(entry, name=name, weight_sets=(weights,)))
                else:
                    self._aliases[name] = entry.name

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Architecture:
        try:
            return self._entries[self.canonical(name)]
        except KeyError:
            raise UnknownModelError(name, self._entries) from None

    def get(self, name: str) -> Architecture | None:
        return self._entries.get(self.canonical(name))

    def canonical(self, name: str) -> str:
        """`NAME` for `NAME@TAG` if TAG is the default; any other name as it is."""
        return self._aliases.get(name, name)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def _add(self, entry: Architecture) -> None:
        if entry.name in self._entries:
            raise ValueError(f"the catalog has two entries named {entry.name!r}")
        self._entries[entry.name] = entry


def read_catalog(path: Path) -> Catalog:
    """The catalog in a TOML file: a table for each architecture with the fields of `Architecture` and its `weights`.

    Raises pydantic's ValidationError (a ValueError) if a key is unknown or missing, or a value has the wrong type.
    """
    with path.open("rb") as file:
        tables = tomllib.load(file)
    reader = TypeAdapter(Architecture)
    entries = []
    for name, table in tables.items():
        weights = [{"tag": tag, **facts} for tag, facts in table.pop("weights", {}).items()]
        entries.append(reader.validate_python({"name": name, "weight_sets": weights, **table}, extra="forbid"))
    return Catalog(entries)


CATALOG = read_catalog(_FILE)
