"""The benchmark of decoding: what it measures, against what, and what it prints."""

import io
import json
import time

import numpy as np
from click.testing import CliRunner
from PIL import Image

from benchmarks.decoding import decode_costs, main, plain
from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits
from service.preprocessing import transforms
from service.preprocessing.decode import decode_pixels


def test_the_made_photo() -> None:
    """It has the pixels and about the bytes of the photo that other servers are measured with, each time the same."""
    photo = made_photo()

    assert Image.open(io.BytesIO(photo)).size == (500, 375)
    assert abs(len(photo) - 100_000) < 5000
    assert photo == made_photo()


def test_plain_is_the_same_recipe() -> None:
    """What is measured beside the server's way gives the same pixels, to one grey level."""
    photo = made_photo()
    ours = transforms.center_crop(InputSpec(), decode_pixels(photo, ImageLimits())).astype(int)

    assert np.abs(plain(photo) - ours).max() <= 1


def test_costs() -> None:
    """Each photo is measured in each way beside the plain recipe; whole decodes keep the pixels."""
    costs = decode_costs([0.02, 1.5], rounds=1)

    assert [(cost.width, cost.height) for cost in costs[::3]] == [(500, 375), (163, 122), (1414, 1061)]
    assert [cost.way for cost in costs] == list(Decode) * 3
    assert [cost.scale for cost in costs] == ["1/1"] * 7 + ["1/2", "1/1"]
    for cost in costs:
        assert cost.cpu_ms > 0
        assert cost.decode_ms > 0
        assert cost.plain_ms > 0
        assert cost.plain_decode_ms > 0
        assert cost.levels <= (1 if cost.scale == "1/1" else 5)


def test_measured_on_a_thread() -> None:
    """Another thread than the caller's decodes, as in a server: there memory is given back in another way."""
    process_s, thread_s = time.process_time(), time.thread_time()
    decode_costs([], rounds=2)
    elsewhere_s = (time.process_time() - process_s) - (time.thread_time() - thread_s)

    assert elsewhere_s > 0.04, "two rounds of plain Pillow alone take that long"


def test_json() -> None:
    """With --json the figures can be read by a program."""
    result = CliRunner().invoke(main, ["--rounds", "1", "--megapixels", "0.1", "--json"])
    figures = json.loads(result.output)

    assert [figure["width"] for figure in figures] == [500] * 3 + [365] * 3
    assert figures[0].keys() == {
        *("width", "height", "size_bytes", "way", "scale", "cpu_ms", "decode_ms", "plain_ms", "plain_decode_ms"),
        *("ratio", "levels"),
    }
