"""Whether a server classifies as it should: its five classes beside those of the model in ONNX Runtime f32."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.asking import AnswerError, bench_photo
from benchmarks.peers.common import cut
from export.gate_images import PHOTOS
from models.artifact.artifact import load
from service.common.types import Precision, Runtime
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

SAME = 0.001
"""By how much of the best probability an answer of the same recipe and precision may be off."""

CLOSE = 0.05
"""The same for another decoder or a lower precision that has passed its own parity gate."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A photo, and the probabilities of all classes."""

    photo: bytes
    probabilities: NDArray[np.float32]

    def check(self, answer: Sequence[tuple[int, float]], tolerance: float) -> None:
        """Raise AnswerError where a place has another probability, or the class at it; near ties may change places."""
        best = np.sort(self.probabilities)[::-1]
        if len(answer) != 5:
            raise AnswerError(f"{len(answer)} classes instead of 5")
        allowed = tolerance * float(best[0])
        for place, (number, probability) in enumerate(answer):
            wanted = (float(best[place]), float(self.probabilities[number]))
            if max(abs(probability - one) for one in wanted) > allowed:
                expected = int(np.argsort(-self.probabilities, kind="stable")[place])
                raise AnswerError(
                    f"place {place + 1} is class {number} with {probability:.6f}, "
                    f"expected class {expected} with {wanted[0]:.6f}"
                )


def expected(model: str, artifacts: Path) -> list[Expected]:
    """For the photo that is measured and three others."""
    engine = open_engine(load(artifacts, model), EngineOptions(Runtime.ONNXRUNTIME, Precision.F32)).engine
    names = ("zebra.jpeg", "airliner.jpeg", "gorilla.jpeg")
    photos = [bench_photo(), *((PHOTOS / name).read_bytes() for name in names)]
    try:
        samples = [cut(Image.open(BytesIO(photo))) for photo in photos]
        rows = [engine.run(sample[np.newaxis])[0] for sample in samples]
    finally:
        engine.close()
    return [Expected(photo, row) for photo, row in zip(photos, rows, strict=True)]
