"""The interface that REST and gRPC call, for models in this process or in others. Uses neither HTTP nor protobuf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.common.model_info import ModelDetail, ModelLayers, ModelList
from service.common.types import DEFAULT_CROPS, Classification
from service.inference.comparison import Comparison


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """How an image is classified, and until when.

    `deadline` is in seconds of the service's clock. `top_k` is the number of classes, best first; None gives five, or
    all where a model has fewer. `crops` is 1, or 10 for the average over corners, centre and their mirrors.
    """

    deadline: float
    top_k: int | None = None
    crops: int = DEFAULT_CROPS


class DataPlane(Protocol):
    """Classifies images and tells what is known of models: in this process, or by asking inference servers.

    Each method raises a TopfiveError of `service.common.errors`.
    """

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        """The best classes of an image file, by that model or ensemble, None for the default one."""

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        """The answers of several models to one image file side by side; of all loaded ones where none is named."""

    async def models(self) -> ModelList:
        """All models: loaded, exported, or waiting to be exported. Raises NotReady before a default is known."""

    async def model(self, name: str) -> ModelDetail:
        """One model. Raises ModelNotFound, or NotReady where it is damaged."""

    async def layers(self, name: str) -> ModelLayers:
        """The layers of an exported model, loaded or not. Raises as `model` does."""

    def check_alive(self) -> None:
        """Raise NotReady where only a new process can help."""

    def check_ready(self) -> None:
        """Raise NotReady or ShuttingDown where requests should go to another server."""
