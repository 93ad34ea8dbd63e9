"""Whether a server answers as it should: its best class beside the model's own."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers.common import cut
from benchmarks.requests import bench_photo, send_photo
from benchmarks.server_under_test import ServerUnderTest
from export.gate_images import PHOTOS
from models.artifact.artifact import load
from service.common.types import Precision, Runtime
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

_TOLERANCE = 0.05  # of the probability: decoders and precisions differ
_ANSWER_TIMEOUT_S = 30.0
_REFERENCE = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32)


class AnswerError(Exception):
    """A server did not answer, or it answered wrongly."""


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """A photo, and the best class of the model for it with its probability."""

    photo: bytes
    best: tuple[int, float]

    def check(self, body: bytes) -> None:
        """Raises AnswerError where the answer of a server has another class or another probability."""
        number, probability = best_class(body)
        if number != self.best[0] or abs(probability - self.best[1]) > _TOLERANCE * self.best[1]:
            raise AnswerError(
                f"the best class is {number} with {probability:.6f}, expected {self.best[0]} with {self.best[1]:.6f}"
            )


def best_class(body: bytes) -> tuple[int, float]:
    """The best class in the answer of any of the servers, with its probability. Raises AnswerError."""
    try:
        reply = json.loads(body)
        if isinstance(reply, dict) and "outputs" in reply:  # V2
            reply = json.loads(reply["outputs"][0]["data"][0])
        if isinstance(reply, dict):  # topfive
            return int(reply["predictions"][0]["class_id"]), float(reply["predictions"][0]["probability"])
        if isinstance(reply[0], list):  # a server whose endpoints take lists of photos
            reply = reply[0]
        return int(reply[0]["class"]), float(reply[0]["probability"])
    except (ValueError, LookupError, TypeError) as error:
        raise AnswerError(f"no classes in the answer {body[:200]!r}") from error


def expected_answers(model: str, artifacts: Path, options: EngineOptions = _REFERENCE) -> list[ExpectedAnswer]:
    """Run the model on the photo that is measured, and on three others; by default in ONNX Runtime f32."""
    engine = open_engine(load(artifacts, model), options).engine
    names = ("zebra.jpeg", "airliner.jpeg", "gorilla.jpeg")
    photos = [bench_photo(), *((PHOTOS / name).read_bytes() for name in names)]
    try:
        rows = [engine.run(cut(Image.open(BytesIO(photo)))[np.newaxis])[0] for photo in photos]
    finally:
        engine.close()
    return [
        ExpectedAnswer(photo, (int(row.argmax()), float(row.max()))) for photo, row in zip(photos, rows, strict=True)
    ]


def check_answers(server: ServerUnderTest, expected: Sequence[ExpectedAnswer]) -> None:
    """Ask every copy of a server for every photo. Raises AnswerError."""
    for one in expected:
        for url in server.addresses:
            answer = asyncio.run(send_photo(server.spec, url, one.photo, _ANSWER_TIMEOUT_S))
            if answer.failure:
                raise AnswerError(f"a good photo is answered with {answer.failure}: {answer.text}")
            one.check(answer.body)
