"""LeNet-5 from the bundled weights to the answer: a model that is right on a machine that can download nothing."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

import models
from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.architectures.train_lenet5 import Digits, read_digits
from models.artifact.artifact import read_manifest
from models.catalog import CATALOG
from proto.topfive.v1 import classifier_pb2 as pb
from service.cli.main import main
from tests import drawn_digits
from tests.conftest import NullReporter
from tests.serving import serving

X = TypeVar("X")

RECORD = json.loads((Path(models.__file__).parent / "data" / "lenet5.json").read_text(encoding="utf-8"))["test"]


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds `lenet5`, exported as a new user does."""
    root = tmp_path_factory.mktemp("lenet")
    export(CATALOG["lenet5"], WeightsChoice.parse("auto", None), root, NullReporter())
    return root


@pytest.fixture(scope="module")
def digits() -> Digits:
    """The digits that training has not seen."""
    return read_digits()[1]


def batched(values: list[X], size: int) -> Iterator[list[X]]:
    """Lists of `size` of them in order."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def files(digits: Digits, *, black_on_white: bool = False) -> Iterator[tuple[bytes, str]]:
    """Each as a PNG of 8x8 grey pixels, and what it is."""
    for pixels, digit in zip(digits.images, digits.labels.tolist(), strict=True):
        image = Image.fromarray(pixels)
        file = io.BytesIO()
        (ImageOps.invert(image) if black_on_white else image).save(file, "PNG")
        yield file.getvalue(), str(digit)


@pytest.mark.anyio
@pytest.mark.parametrize("ink", ["white on black", "black on white"])
async def test_reads_digits(lenet: Path, digits: Digits, ink: str) -> None:
    """Over REST as many of the 360 digits are right as the training recorded, and gRPC says the same of the last."""
    found = list(files(digits, black_on_white=ink == "black on white"))
    right = 0
    async with serving(lenet, models=("lenet5",), precision="f32") as running:
        for few in batched(found, 60):
            responses = await asyncio.gather(
                *(running.http.post("/predict", files={"image": image}) for image, _ in few)
            )
            answers = [response.json() for response in responses]
            right += sum(
                answer["predictions"][0]["label"] == digit for answer, (_, digit) in zip(answers, few, strict=True)
            )
        reply = await running.stub.Classify(pb.ClassifyRequest(image=few[-1][0]))
        answer = answers[-1]
        assert [one.label for one in reply.predictions] == [one["label"] for one in answer["predictions"]]
        assert answer["model"]["weights"] == "pretrained"
        assert answer["model"]["parameters"] == 60_000
        assert answer["model"]["acc_dataset"] == "scikit-learn digits, test split"
        assert answer["warnings"] == []

    assert len(found) == RECORD[ink]["images"]
    assert right == RECORD[ink]["top1"] >= 0.97 * len(found)


@pytest.mark.anyio
async def test_reads_digits_of_a_pen_on_white_paper(lenet: Path) -> None:
    """Over REST every digit that is drawn with a black pen on white is read, such as a 7 with and without a bar."""
    found = [(file, digit) for sheet, digit, file in drawn_digits.files() if sheet.name == "black pen on white"]
    async with serving(lenet, models=("lenet5",), precision="f32") as running:
        responses = await asyncio.gather(*(running.http.post("/predict", files={"image": one}) for one, _ in found))

    read = [response.json()["predictions"][0]["label"] for response in responses]
    assert read == [digit for _, digit in found]
    assert set(read) == set("0123456789")


def test_evaluated(lenet: Path, digits: Digits, tmp_path: Path) -> None:
    """topfive evaluate on folders named 0 to 9 measures the published accuracy and writes it into the manifest."""
    for number, (image, digit) in enumerate(files(digits)):
        folder = tmp_path / "digits" / digit
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(image)
    arguments = ["evaluate", tmp_path / "digits", "--model", "lenet5", "--artifacts", lenet, "--out", tmp_path / "out"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--precision", "f32"])
    _, manifest = read_manifest(lenet, "lenet5")
    (measured,) = manifest.measured

    assert result.exit_code == 0, result.output
    assert (measured.images, measured.dataset) == (360, "digits")
    assert round(measured.acc1, 3) == manifest.acc1
    assert measured.acc1_low < measured.acc1 < measured.acc1_high
