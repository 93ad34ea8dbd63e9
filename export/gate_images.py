"""The images of the parity gate: the photos that come with the project, and random pixels."""

from pathlib import Path

import numpy as np

from models.catalog import InputSpec
from service.common.types import Batch, ImageLimits
from service.preprocessing import decode, transforms

PHOTOS = Path(__file__).parent / "photos"


def photos(spec: InputSpec, folder: Path = PHOTOS) -> Batch:
    """Every photo of `folder`, preprocessed as the service does, [N, crop, crop, 3]."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".jpeg", ".jpg", ".png"))
    return np.stack(
        [transforms.center_crop(spec, decode.decode_pixels(file.read_bytes(), ImageLimits())) for file in files]
    )


def random_pixels(spec: InputSpec, count: int, seed: int = 1998) -> Batch:
    """Seeded uniform noise, [count, crop, crop, 3]: far from any photo, so that no answer is right by luck."""
    return np.random.default_rng(seed).integers(0, 256, (count, spec.crop, spec.crop, 3), dtype=np.uint8)
