"""What the services of all peers share: one recipe with Pillow, one ONNX Runtime session, one shape of the answer.

It runs in the environments of the peers, so it imports nothing of this project. The environment names the model,
`BENCH_MODEL`, and the port, `BENCH_PORT`.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

RESIZE, CROP = 256, 224
MAX_BATCH = 8
WAIT_MS = 3
WORKERS = 2

Pixels = npt.NDArray[np.uint8]
Answer = list[dict[str, int | float]]


def sample(data: bytes) -> Pixels:
    """The shorter side to 256, bilinear, then the middle 224 x 224; uint8 [224, 224, 3]."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    return cut(photo)


def cut(photo: Image.Image) -> Pixels:
    """The same for a photo that is already open."""
    width, height = photo.size
    across = max(RESIZE, int(RESIZE * width / height))
    down = max(RESIZE, int(RESIZE * height / width))
    small = photo.convert("RGB").resize((across, down), Image.Resampling.BILINEAR)
    left, top = round((across - CROP) / 2), round((down - CROP) / 2)
    return np.asarray(small.crop((left, top, left + CROP, top + CROP)))


class Network:
    """The model of `BENCH_MODEL` in ONNX Runtime with one thread: two processes of it fill two cores."""

    def __init__(self) -> None:
        import onnxruntime  # not in every environment

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answers(self, samples: Sequence[Pixels]) -> list[Answer]:
        probabilities = self._session.run(None, {"image": np.stack(samples)})[0]  # float32 [N, C]
        return [top_five(row) for row in probabilities]


def top_five(probabilities: npt.NDArray[np.float32]) -> Answer:
    """Class and probability of the five best of one row."""
    best = np.argsort(-probabilities, kind="stable")[:5]
    return [{"class": int(index), "probability": float(probabilities[index])} for index in best]
