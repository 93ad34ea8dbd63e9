"""The images that are sent: files, folders, or one generated photo."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loadgen.connection import LoadTestError
from service.common.sample_photo import made_photo

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
_GROUP_LIMITS_MP = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of an image file. `size` is its width and height in pixels, None if the bytes are no image."""

    name: str
    data: bytes
    size: tuple[int, int] | None
    content_type: str

    @property
    def group(self) -> str:
        """The range of sizes that it belongs to, in megapixels."""
        if self.size is None:
            return "no image"
        pixels = self.size[0] * self.size[1] / 1e6
        below = [limit for limit in _GROUP_LIMITS_MP if limit <= pixels]
        above = [limit for limit in _GROUP_LIMITS_MP if limit > pixels]
        if not above:
            return f"from {below[-1]:g} MP"
        return f"{below[-1]:g} to {above[0]:g} MP" if below else f"below {above[0]:g} MP"


def read_images(paths: Sequence[Path]) -> list[EncodedImage]:
    """Read files, and the images of folders in the order of their names; without paths, generate a photo.

    A named file is used whatever it contains; of a folder only the files with an image's suffix. Raises LoadTestError.
    """
    if not paths:
        return [_encoded_image("made", made_photo())]
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
            if not inside:
                raise LoadTestError(f"{path} holds no image ({', '.join(sorted(_SUFFIXES))})")
            files += inside
        else:
            files.append(path)
    try:
        return [_encoded_image(file.name, file.read_bytes()) for file in files]
    except OSError as error:
        raise LoadTestError(f"{error.filename} cannot be read: {error.strerror}") from error


def _encoded_image(name: str, data: bytes) -> EncodedImage:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return EncodedImage(name, data, image.size, _TYPES.get(image.format or "", "application/octet-stream"))
    except (OSError, Image.DecompressionBombError):
        return EncodedImage(name, data, None, "application/octet-stream")
