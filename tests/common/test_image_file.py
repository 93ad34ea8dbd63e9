"""Image files from disk: the limit on their size, and what is no plain file."""

import os
from pathlib import Path

import pytest

from service.common.errors import TooLarge
from service.common.image_file import read_image_file
from service.common.types import ImageLimits


def test_image_file(tmp_path: Path) -> None:
    """A file is read up to the limit of bytes; larger ones and what is no plain file are refused before."""
    file = tmp_path / "photo"
    file.write_bytes(bytes(1001))
    assert len(read_image_file(file, ImageLimits(max_bytes=1001))) == 1001
    with pytest.raises(TooLarge, match="1,001 bytes"):
        read_image_file(file, ImageLimits(max_bytes=1000))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_image_file(tmp_path / "pipe", ImageLimits())
