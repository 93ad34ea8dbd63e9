"""The photos that ranges of int8 are measured on: a folder of them, through the intake that serves."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from models.catalog import InputSpec
from service.common.errors import TopfiveError
from service.common.types import ImageLimits, Sample
from service.preprocessing import decode, transforms

log = logging.getLogger(__name__)

FEWEST = 10
ENOUGH = 100  # from here on more photos change little; published recipes take some hundred
_MOST = 512


class CalibrationError(Exception):
    """The folder has too few photos; the message says how many, and what is asked for."""


class Photos:
    """The photos below `folder` that can be read, at most 512 of them, evenly over the sorted names.

    The one with the most contrast comes first: from it ONNX Runtime takes the width of its histograms' bins, and fails
    where a later one needs far more of them. Those that cannot be read are named in the log and skipped. Raises
    CalibrationError where fewer than ten are left.
    """

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        files = sorted(_below(folder))
        taken = min(len(files), _MOST)
        self._spec = spec
        found: list[tuple[float, float, Path]] = []
        for file in (files[place * len(files) // taken] for place in range(taken)):
            try:
                sample = self._read(file)
            except (TopfiveError, OSError) as error:
                log.warning("%s is not used for calibration: %s", file, error)
            else:
                found.append((float(sample.std()), float(sample.mean()), file))
        self._files = [file for _, _, file in sorted(found, reverse=True)]
        if len(self._files) < FEWEST:
            raise CalibrationError(
                f"{folder} holds {len(self._files)} photos that can be read; calibration needs {FEWEST} at least, "
                f"better {ENOUGH} or more, such as the model will see"
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: int) -> Sample:
        """The network input made of one of them, read again: together they may not fit into memory."""
        return self._read(self._files[place])

    def _read(self, file: Path) -> Sample:
        if not file.is_file():  # a pipe would be waited for
            raise OSError("it is no file")
        return transforms.center_crop(self._spec, decode.decode_pixels(file.read_bytes(), ImageLimits()))


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise CalibrationError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in decode.SUFFIXES)
