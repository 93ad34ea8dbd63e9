"""Types of the values that pass between the steps of a request. A value never changes after it is made.

bytes -> Pixels -> Sample -> batch -> probabilities -> Classification
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainSerializer

from service.common.errors import TooLarge

R = TypeVar("R")
T = TypeVar("T")

ENSEMBLE = "ensemble"
ENSEMBLE_PREFIX = f"{ENSEMBLE}:"
DEFAULT_TOP_K = 5
DEFAULT_CROPS = 1
TEN_CROPS = 10
MAX_MEMBERS = 8
"""Largest number of members in an ensemble `ensemble:a+b+c`, which averages the probabilities of its members."""

CACHE = Path("~/.cache/topfive")
"""The default folder for measurements and compiled files of this machine, with `~` not expanded."""

Probability = Annotated[float, PlainSerializer(lambda value: float(f"{value:.7g}"), float, "json")]
"""In [0, 1]. JSON has the seven digits that a float32 holds."""

Milliseconds = Annotated[float, PlainSerializer(lambda value: round(value, 3), float, "json")]
"""JSON has whole microseconds."""

Pixels = NDArray[np.uint8]
"""A decoded photo: [H, W, 3], RGB."""

Sample = NDArray[np.uint8]
"""One network input: [S, S, 3], RGB, resized and cropped as the weights ask."""

Samples = NDArray[np.uint8]
"""The crops of one photo, [crops, S, S, 3]: one, or ten."""

Batch = NDArray[np.uint8]
"""Samples of a batch, [N, S, S, 3]."""

Rows = Batch | Sequence[Sample]
"""A batch as one array, or its samples one by one."""

Probabilities = NDArray[np.float32]
"""[N, C] for a batch, [C] for one sample."""


class Runtime(StrEnum):
    """The values of `--runtime`. AUTO takes the fastest installed runtime that fits the machine."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    TORCH = "torch"


class Precision(StrEnum):
    """The values of `--precision`. AUTO takes a lower one only if the parity report of the artifact passes."""

    AUTO = "auto"
    F32 = "f32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Decode(StrEnum):
    """The values of `--decode`: whether a large JPEG may be decoded at a reduced size.

    EXACT decodes every pixel. AUTO reduces as long as answers hardly change; FAST reduces further.
    """

    AUTO = "auto"
    FAST = "fast"
    EXACT = "exact"


class ModelControl(StrEnum):
    """The values of `--model-control`: what loads another version of a model, or another model, while the server runs.

    NONE loads at requests that need it. EXPLICIT loads and unloads when told to, and at no other request. WATCH takes
    new versions of loaded models from the folder, and loads at requests too.
    """

    NONE = "none"
    EXPLICIT = "explicit"
    WATCH = "watch"


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Supported image formats, by Pillow's names."""


@dataclass(frozen=True, slots=True)
class RestAccess:
    """Under which names REST is reached: its path prefix, who may tell another, host names, origins of web pages.

    `torchserve`: also under the paths of TorchServe.
    """

    root_path: str
    trusted_proxies: str
    hosts: Sequence[str]
    origins: Sequence[str]
    public_metrics: bool = False  # without an API key
    torchserve: bool = False


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest accepted image: bytes of the file, and width times height in pixels."""

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000


def check_size(size_bytes: int, limits: ImageLimits) -> None:
    """Raise TooLarge if an image of `size_bytes` exceeds the limit."""
    if size_bytes > limits.max_bytes:
        raise TooLarge(f"the image has {size_bytes:,} bytes; this server takes at most {limits.max_bytes:,}")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of the batcher of one model. `capacity` counts admitted images, from before decoding until the answer.

    `max_failures` failed batches in a row make the model unhealthy, and so does a batch that runs for `max_run_s`. New
    images are refused while those in flight would take longer than `max_queue_s`; 0: no bound. `slo_s` bounds the 99th
    percentile of the time from admission to answer; 0: no bound. `apart` is true if each slot computes on its own, as
    on a CPU: then the waiting items are divided evenly among the free slots.
    """

    slots: int
    max_batch: int
    capacity: int = 256
    max_failures: int = 3
    max_run_s: float = 60.0
    max_queue_s: float = 0.0
    slo_s: float = 0.0
    apart: bool = False


class ItemOutcome(StrEnum):
    """How an item of a batcher ended. Each item ends exactly once."""

    OK = "ok"
    OVERLOADED = "overloaded"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


class SloOutcome(StrEnum):
    """How an image under `--slo-ms` ended: answered within the bound, late, or refused because of it."""

    WITHIN = "within"
    OVER = "over"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[R]):
    """The answer to one item, its time in the queue, and the run time and size of its batch."""

    value: R
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How an engine uses the CPU: number of batches at once (slots), threads of each, and the largest batch.

    `origin` says when the layout was tuned, or that it is the default.
    """

    slots: int
    threads: int
    max_batch: int
    origin: str = "defaults"

    def __str__(self) -> str:
        return f"{self.origin}: slots {self.slots}, threads {self.threads}, max_batch {self.max_batch}"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The runtime of a model with its version, the device, and the precision of the computation."""

    runtime: str
    version: str
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the most probable classes. `rank` counts from 1; `probability` is in [0, 1]."""

    rank: int
    class_id: int
    wnid: str
    label: str
    probability: Probability


@dataclass(frozen=True, slots=True)
class Latency:
    """The latency of one model since the server started, in milliseconds. Percentiles are null before a request."""

    count: int
    p50: Milliseconds | None
    p90: Milliseconds | None
    p99: Milliseconds | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model that answered. Accuracy is in percent on `acc_dataset`, and null if these weights have none."""

    name: str
    version: int
    family: str
    parameters: int
    macs: int
    input_size: int
    weights: str
    acc1: float | None
    acc5: float | None
    acc_dataset: str | None
    latency_ms: Latency


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: decoding with resize and crop, waiting for a thread and a slot, the engine's run, the total."""

    decode: Milliseconds
    queue: Milliseconds
    inference: Milliseconds
    total: Milliseconds


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image became the input of the model. If the members of an ensemble differ, `+` joins their values.

    `decoder` is the library and its version. `scale` is 1/1 if every pixel was decoded, else the fraction of width and
    height at which the JPEG was decoded. `recipe` is the resize and the crop.
    """

    decoder: str
    scale: str
    recipe: str


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer of a model to one image. Probabilities are in [0, 1], accuracy in percent, times in milliseconds."""

    predictions: tuple[Prediction, ...]
    model: ModelCard
    engine: EngineInfo
    preprocessing: Preprocessing
    timing_ms: Timing
    batch_size: Annotated[int, Field(description="How many images shared this run of the engine")]
    warnings: tuple[str, ...]
    members: Annotated[tuple[ModelCard, ...], Field(description="The members of an ensemble; empty for a single model")]


def copy_as(cls: type[T], source: object, **given: object) -> T:
    """A dataclass `cls` with the `given` fields. The other fields are copied from `source`."""
    return cls(**given, **{name: getattr(source, name) for name in _names(cls) if name not in given})


_names: Callable[[type], Sequence[str]] = cache(lambda cls: [field.name for field in fields(cls)])
