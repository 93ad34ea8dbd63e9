"""The benchmark of decoding: what it measures, and against what."""

import time

import numpy as np

from benchmarks.decoding import decode_costs, measure, plain
from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits
from service.preprocessing import transforms
from service.preprocessing.decode import decode_pixels


def test_plain_is_the_same_recipe() -> None:
    """What is measured beside the server's way gives the same pixels, to one grey level."""
    photo = made_photo()
    ours = transforms.center_crop(InputSpec(), decode_pixels(photo, ImageLimits())).astype(int)

    assert np.abs(plain(photo) - ours).max() <= 1


def test_costs() -> None:
    """The plain recipe and each value of `--decode` cost something in each round."""
    costs = decode_costs(made_photo(200, 150), 2)

    assert list(costs) == ["plain", *Decode]
    assert all(len(each) == 2 and min(each) > 0 for each in costs.values())


def test_measured_on_a_thread() -> None:
    """Another thread than the caller's decodes, as in a server: there memory is given back in another way."""
    process_s, thread_s = time.process_time(), time.thread_time()
    found = measure([(500, 375, 94)], rounds=2)
    elsewhere_s = (time.process_time() - process_s) - (time.thread_time() - thread_s)

    assert elsewhere_s > 0.04, "two rounds of plain Pillow alone take that long"
    assert [len(line) for line in found.table] == [len(found.heads)]
    assert [row.name for row in found.rows] == ["decode and resize / plain Pillow, 500 x 375"]
