"""Models as tensors: where long replies are written."""

import threading

import numpy as np
import pytest

from models.labels import imagenet_labels
from service.common.types import Timing
from service.inference.dataplane import Inference
from service.inference.tensors import written

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("images", "apart"), [(1, False), (64, True)])
async def test_written(images: int, apart: bool) -> None:
    """The reply with many images is written on another thread, and a short one at once."""
    inference = Inference(np.zeros((images, 1000), np.float32), imagenet_labels(), "tiny", 1, Timing(0, 0, 0, 0))

    assert (await written(inference, threading.get_ident) != threading.get_ident()) is apart
