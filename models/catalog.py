"""The catalog: every architecture topfive can export, with its metadata. Listing it imports no torch."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Interpolation(StrEnum):
    """Resampling filter of the resize step; both are applied with antialiasing, as Pillow does."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a photo becomes the network's input, in the vocabulary of torchvision's `ImageClassification` transform.

    The shorter side is resized to `resize` pixels, the centre `crop` x `crop` pixels are kept, and inside the graph
    each channel becomes `(value / 255 - mean) / std`.
    """

    resize: int = 256
    crop: int = 224
    interpolation: Interpolation = Interpolation.BILINEAR
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class WeightSet:
    """A published set of weights: torchvision's tag, and its accuracy in percent on the ImageNet validation set."""

    tag: str
    acc1: float
    acc5: float
    input: InputSpec = InputSpec()


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the catalog.

    `source` is `torchvision:BUILDER` or `MODULE:FUNCTION`; `options` are the builder's arguments. `parameters` and
    `macs` (multiply-accumulates of convolutions and fully connected layers, one image) describe the graph that is
    served; the submodules named in `training_only` are left out of it. The first of `weight_sets` is the default.
    """

    name: str
    family: str
    year: int
    paper: str
    source: str
    parameters: int
    macs: int
    weight_sets: tuple[WeightSet, ...] = ()
    untrained_input: InputSpec = InputSpec()
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    training_only: tuple[str, ...] = ()
    classes: int = 1000

    @property
    def default_weights(self) -> WeightSet | None:
        """The published weights that `--weights pretrained` takes, or None where there are none to download."""
        return self.weight_sets[0] if self.weight_sets else None

    @property
    def input(self) -> InputSpec:
        """The input of the default weights, or of the bare network where there are none."""
        return self.weight_sets[0].input if self.weight_sets else self.untrained_input


_LONGEST_NAME = 80  # of a name that is repeated in an error


class UnknownModelError(LookupError):
    """No model of that name; `nearest` holds up to three names that look like it."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        name = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
        self.name = name
        self.nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else f"known: {', '.join(names)}"
        super().__init__(f"there is no model {name!r}; {hint}")


class Catalog:
    """A read-only collection of architectures by name, in the order given.

    Raises ValueError when two entries share a name.
    """

    def __init__(self, entries: Iterable[Architecture]) -> None:
        self._entries: dict[str, Architecture] = {}
        for entry in entries:
            if entry.name in self._entries:
                raise ValueError(f"the catalog has two entries named {entry.name!r}")
            self._entries[entry.name] = entry

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Architecture:
        """The entry of that name; raises UnknownModelError with the nearest names."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModelError(name, self._entries) from None

    def get(self, name: str) -> Architecture | None:
        """The entry of that name, or None."""
        return self._entries.get(name)

    def names(self) -> tuple[str, ...]:
        """All names, in catalog order."""
        return tuple(self._entries)


# GoogLeNet's published weights scale their own input from ImageNet statistics to mean 0.5, std 0.5
# (torchvision's `transform_input`); saying so here folds that step into the graph's one normalisation.
_HALF = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_AUXILIARY = MappingProxyType({"aux_logits": True, "init_weights": False, "transform_input": False})

CATALOG = Catalog(
    [
        Architecture(
            name="alexnet",
            family="alexnet",
            year=2014,
            paper="Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks",
            source="torchvision:alexnet",
            parameters=61_100_840,
            macs=714_188_480,
            weight_sets=(WeightSet("IMAGENET1K_V1", acc1=56.522, acc5=79.066),),
        ),
        Architecture(
            name="googlenet",
            family="inception",
            year=2014,
            paper="Szegedy et al. 2014, Going Deeper with Convolutions",
            source="torchvision:googlenet",
            parameters=6_624_904,
            macs=1_498_376_192,
            weight_sets=(WeightSet("IMAGENET1K_V1", acc1=69.778, acc5=89.53, input=_HALF),),
            options=_AUXILIARY,
            training_only=("aux1", "aux2"),
        ),
        Architecture(
            name="resnet50",
            family="resnet",
            year=2015,
            paper="He et al. 2015, Deep Residual Learning for Image Recognition",
            source="torchvision:resnet50",
            parameters=25_557_032,
            macs=4_089_184_256,
            weight_sets=(
                WeightSet("IMAGENET1K_V2", acc1=80.858, acc5=95.434, input=InputSpec(resize=232)),
                WeightSet("IMAGENET1K_V1", acc1=76.13, acc5=92.862),
            ),
        ),
        Architecture(
            name="squeezenet1_1",
            family="squeezenet",
            year=2016,
            paper="Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
            source="torchvision:squeezenet1_1",
            parameters=1_235_496,
            macs=349_151_936,
            weight_sets=(WeightSet("IMAGENET1K_V1", acc1=58.178, acc5=80.624),),
        ),
        Architecture(
            name="tiny",
            family="tiny",
            year=2026,
            paper="none: a network of three convolutions for tests and demonstrations",
            source="models.tiny:tiny",
            parameters=20_752,
            macs=181_888,
            untrained_input=InputSpec(resize=36, crop=32),
        ),
    ]
)
