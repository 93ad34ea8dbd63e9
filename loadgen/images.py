"""The images that are sent: files, folders, or one generated photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path

from loadgen.connection import LoadTestError
from service.common.sample_photo import made_photo


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of an image file, and the content type that they are sent with."""

    data: bytes
    content_type: str = "image/jpeg"


def read_images(paths: Sequence[Path]) -> list[EncodedImage]:
    """Read files, and of folders those named as images, in order; without paths, generate a photo of 500 x 375.

    Raises LoadTestError.
    """
    if not paths:
        return [EncodedImage(made_photo())]
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else [file for file in sorted(path.iterdir()) if _type(file)[:6] == "image/"]
        if not inside:
            raise LoadTestError(f"{path} holds no image")
        files += inside
    try:
        return [EncodedImage(file.read_bytes(), _type(file)) for file in files]
    except OSError as error:
        raise LoadTestError(f"{error.filename} cannot be read: {error.strerror}") from error


def _type(file: Path) -> str:
    return guess_type(file)[0] or "application/octet-stream"
