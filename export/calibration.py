"""The photos that calibrate a network in int8."""

import logging
from pathlib import Path

from export.common import ExportError
from models.catalog import InputSpec
from service.common.errors import TopfiveError
from service.common.types import ImageLimits, Sample
from service.offline.images import OfflineError, find_images
from service.preprocessing import decode, transforms

ENOUGH_PHOTOS = 100  # from here on more photos change little; published recipes take some hundred
_FEWEST_PHOTOS, _MOST_PHOTOS = 10, 512

log = logging.getLogger(__name__)


class CalibrationError(ExportError):
    """These photos do not calibrate the network."""


class CalibrationPhotos:
    """The calibration photos below `folder` as samples: at most `most`, evenly spaced over the sorted names.

    Hidden folders and those of tools are left out, as in `topfive classify`.

    All are read once to sort them, and each again when it is taken. They are sorted by contrast (standard deviation of
    the pixels), highest first: ONNX Runtime takes the bin width of its histograms from the first photo, and fails if a
    later one needs far more bins. Unreadable photos are logged and skipped. Raises CalibrationError if fewer than 10
    are readable.
    """

    def __init__(self, folder: Path, spec: InputSpec, most: int = _MOST_PHOTOS) -> None:
        try:
            files = sorted(one.path for one in find_images([str(folder)]).images)
        except OfflineError as error:
            raise CalibrationError(str(error)) from error
        count = min(len(files), most)
        self._spec = spec
        found: list[tuple[float, float, Path]] = []
        for file in (files[index * len(files) // count] for index in range(count)):
            try:
                sample = self._read(file)
            except (TopfiveError, OSError) as error:
                log.warning("%s is not used for calibration: %s", file, error)
            else:
                found.append((float(sample.std()), float(sample.mean()), file))
        self.files = [file for _, _, file in sorted(found, reverse=True)]
        if len(self.files) < _FEWEST_PHOTOS:
            raise CalibrationError(
                f"{folder} holds {len(self.files)} photos that can be read; calibration needs {_FEWEST_PHOTOS} at "
                f"least, better {ENOUGH_PHOTOS} or more, such as the model will see"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self._read(self.files[index])  # again: together the samples may not fit into memory

    def _read(self, file: Path) -> Sample:
        if not file.is_file():  # reading a pipe would not end
            raise OSError("it is no file")
        return transforms.center_crop(self._spec, decode.decode_pixels(file.read_bytes(), ImageLimits()))
