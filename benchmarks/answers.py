"""Whether a server answers as it should: its five classes beside the model's own."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.common import cut
from benchmarks.requests import bench_photo, send_photo
from benchmarks.server_under_test import ServerUnderTest
from export.gate_images import PHOTOS
from models.artifact.artifact import load
from service.common.types import Precision, Runtime
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

SAME = 0.001
"""The tolerance for an answer of the same recipe and precision, as a share of the best probability."""

CLOSE = 0.05
"""The tolerance for another decoder, or for a lower precision that has passed its own parity gate."""

_ANSWER_TIMEOUT_S = 30.0


class AnswerError(Exception):
    """A server did not answer, or it answered wrongly."""


def top_five(body: bytes) -> list[tuple[int, float]]:
    """The classes in the answer of any of the servers, with their probabilities, best first. Raises AnswerError."""
    try:
        reply = json.loads(body)
        if isinstance(reply, dict) and "outputs" in reply:  # V2
            reply = json.loads(reply["outputs"][0]["data"][0])
        if isinstance(reply, dict):  # topfive
            return [(int(row["class_id"]), float(row["probability"])) for row in reply["predictions"]]
        if reply and isinstance(reply[0], list):  # a server whose endpoints take lists of photos
            reply = reply[0]
        return [(int(row["class"]), float(row["probability"])) for row in reply]
    except (ValueError, LookupError, TypeError) as error:
        raise AnswerError(f"no five classes in the answer {body[:200]!r}") from error


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """A photo, and the model's probabilities of all classes for it."""

    photo: bytes
    probabilities: NDArray[np.float32]

    def check(self, answer: Sequence[tuple[int, float]], tolerance: float) -> None:
        """Compare the five classes of an answer. Classes of nearly equal probability may change places.

        Raises AnswerError where a place has another probability, or where its class has.
        """
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


def expected_answers(model: str, artifacts: Path) -> list[ExpectedAnswer]:
    """Run the model in ONNX Runtime f32 on the photo that is measured, and on three others."""
    engine = open_engine(load(artifacts, model), EngineOptions(Runtime.ONNXRUNTIME, Precision.F32)).engine
    names = ("zebra.jpeg", "airliner.jpeg", "gorilla.jpeg")
    photos = [bench_photo(), *((PHOTOS / name).read_bytes() for name in names)]
    try:
        samples = [cut(Image.open(BytesIO(photo))) for photo in photos]
        rows = [engine.run(sample[np.newaxis])[0] for sample in samples]
    finally:
        engine.close()
    return [ExpectedAnswer(photo, row) for photo, row in zip(photos, rows, strict=True)]


def check_answers(server: ServerUnderTest, expected: Sequence[ExpectedAnswer], tolerance: float) -> None:
    """Ask every copy of a server for every photo. Raises AnswerError, and LoadTestError where no answer comes."""
    for one in expected:
        for url in server.addresses:
            answer = asyncio.run(send_photo(server.spec, url, one.photo, _ANSWER_TIMEOUT_S))
            if answer.status != 200:
                raise AnswerError(f"a good photo is answered with status {answer.status}: {answer.body[:200]!r}")
            one.check(top_five(answer.body), tolerance)
