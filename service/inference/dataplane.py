"""The interface that REST and gRPC call, for models in this process or in others. Uses neither HTTP nor protobuf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.labels import Label
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelVersion
from service.common.statistics import ModelStatistics
from service.common.types import DEFAULT_CROPS, Classification, Probabilities, Samples, Timing
from service.inference.comparison import Comparison

Images = Sequence[bytes] | Samples
"""Image files, or images that are resized and cropped already: uint8 [N, S, S, 3], RGB."""


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Options of one classification, and its deadline.

    `deadline` is in seconds of the service's clock. `top_k` is the number of classes, best first; None gives five, or
    all if a model has fewer. `crops` is 1, or 10 for the average over corners, centre and their mirrors. `version` is
    that of the one model that is asked; None leaves it to the server.
    """

    deadline: float
    top_k: int | None = None
    crops: int = DEFAULT_CROPS
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """The probabilities [N, C] of N images, in their order, and the version of the model that gave them.

    `labels` are its C classes.
    """

    probabilities: Probabilities
    labels: Sequence[Label]
    model: str
    version: int
    timing_ms: Timing


class DataPlane(Protocol):
    """Classifies images and describes models, in this process or by calls to inference servers.

    Each method raises a TopfiveError of `service.common.errors`.
    """

    @property
    def extensions(self) -> Sequence[str]:
        """Extensions of the Open Inference Protocol that this data plane has, and others have not."""

    def check_capacity(self, model: str | None, crops: int, version: int | None = None) -> None:
        """Raise the error that `classify` would raise now for want of capacity. It is cheap, and reserves nothing."""

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        """The best classes of an image file by a model or ensemble; None means the default model.

        The version in the options answers, or it is an error; the card in the answer has the version.
        """

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        """The answers of several models to one image file; of all loaded ones if `models` is empty."""

    async def infer(self, images: Images, model: str, version: int | None, deadline: float) -> Inference:
        """The probabilities of all classes for each image, by a model that is no ensemble; all images or an error.

        They wait and run in batches with those of other requests; a batch may be smaller than the request. `version` is
        that of the model, None leaves it to the server. `deadline` is as in `ClassifyOptions`.
        """

    async def statistics(self, model: str | None, version: int | None) -> Sequence[ModelStatistics]:
        """What each version of the model has done since the start; None means all models, and all versions.

        Raises ModelNotFound if it was never loaded.
        """

    async def models(self) -> ModelList:
        """All models: loaded, exported, or not exported yet. Raises NotReady before a default is known."""

    async def model(self, name: str, version: int | None = None) -> ModelDetail:
        """One model in that version, or that which answers requests. Raises ModelNotFound, NotReady if damaged."""

    async def layers(self, name: str, version: int | None = None) -> ModelLayers:
        """The layers of an exported model, loaded or not. Raises the errors of `model`."""

    async def versions(self) -> Sequence[ModelVersion]:
        """Every exported or loaded version of every model, by name and number, and its state."""

    async def load(self, name: str, version: int | None = None) -> None:
        """Load that version, or the newest whole one. It then answers requests that name no version.

        The version that did so is unloaded after its last request. Raises BadRequest unless the server takes loads,
        ModelNotFound, and NotReady if it cannot be loaded; then the old version goes on.
        """

    async def unload(self, name: str) -> None:
        """Unload every version of the model after its last request. Raises BadRequest, or ModelNotFound."""

    def check_alive(self) -> None:
        """Raise NotReady if only a new process can help."""

    def check_ready(self) -> None:
        """Raise NotReady or ShuttingDown if requests should go to another server."""
