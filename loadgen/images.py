"""The images that are sent: files, folders, or one that is made here."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loadgen.connection import LoadError
from service.common.sample_photo import made_photo

MADE = "made"
"""The name of the image that is made here."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
_LIMITS_MP = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded image. `size` is width and height in pixels, None where the bytes are no image."""

    name: str
    data: bytes
    size: tuple[int, int] | None
    content_type: str

    @property
    def group(self) -> str:
        """Which sizes it is counted with, in megapixels."""
        if self.size is None:
            return "no image"
        pixels = self.size[0] * self.size[1] / 1e6
        below = [limit for limit in _LIMITS_MP if limit <= pixels]
        above = [limit for limit in _LIMITS_MP if limit > pixels]
        if not above:
            return f"from {below[-1]:g} MP"
        return f"{below[-1]:g} to {above[0]:g} MP" if below else f"below {above[0]:g} MP"


def read(paths: Sequence[Path]) -> list[Photo]:
    """The images of files, and of folders in the order of their names; without any, one that is made.

    A file that was named is taken whatever it holds, of a folder what is named as images are. Raises LoadError.
    """
    if not paths:
        return [_photo(MADE, made_photo())]
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
            if not inside:
                raise LoadError(f"{path} holds no image ({', '.join(sorted(_SUFFIXES))})")
            files += inside
        else:
            files.append(path)
    try:
        return [_photo(file.name, file.read_bytes()) for file in files]
    except OSError as error:
        raise LoadError(f"{error.filename} cannot be read: {error.strerror}") from error


def _photo(name: str, data: bytes) -> Photo:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Photo(name, data, image.size, _TYPES.get(image.format or "", "application/octet-stream"))
    except (OSError, Image.DecompressionBombError):
        return Photo(name, data, None, "application/octet-stream")
