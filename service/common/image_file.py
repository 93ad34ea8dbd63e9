"""Reads image files from disk within the size limit."""

import errno
import os
import stat
from pathlib import Path

from service.common.types import ImageLimits, check_size


def read_image_file(path: Path, limits: ImageLimits) -> bytes:
    """The file's bytes.

    Raises TooLarge, before anything is read, if the file exceeds the limit. Raises OSError if the file cannot be read
    or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, opening a pipe waits for its writer
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        check_size(status.st_size, limits)
        return file.read()
