"""The types that pass between the steps, each made once and never changed.

bytes -> Pixels -> Sample -> batch -> probabilities -> Classification
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""A decoded photo: [H, W, 3], RGB."""

Sample = NDArray[np.uint8]
"""One network input: [S, S, 3], RGB, resized and cropped as the weights ask."""

Batch = NDArray[np.uint8]
"""[N, S, S, 3]."""

Probabilities = NDArray[np.float32]
"""[N, C], or one row of it, [C]."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """On what a model runs: runtime and its version, device, and the precision it computes in."""

    runtime: str
    version: str
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the best classes; `rank` counts from 1, `probability` is in [0, 1]."""

    rank: int
    class_id: int
    wnid: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Latency:
    """What this server measured for one model since its start, in milliseconds; percentiles are None before any."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is. Accuracy is in percent, and None where the weights inside were not measured."""

    name: str
    version: int
    family: str
    parameters: int
    macs: int
    input_size: int
    weights: str
    acc1: float | None
    acc5: float | None
    latency_ms: Latency


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: decoding with resize and crop, waiting for a slot, the engine's run, and from bytes to answer."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one image."""

    predictions: tuple[Prediction, ...]
    model: ModelCard
    engine: EngineInfo
    timing_ms: Timing
    batch_size: int
    warnings: tuple[str, ...]
