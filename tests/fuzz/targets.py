"""What `make fuzz` and the suite fuzz: how each kind of input is read, and the files that are mutated."""

from pathlib import Path

from PIL import Image

from models.artifact.artifact import LABELS, MANIFEST
from tests.fuzz.fuzz import CORPUS, Read, artifact_reader, forms, read_form, read_photo
from tests.models.test_artifact import add
from tests.preprocessing.test_decode import SAMPLES, encode, picture


def targets(folder: Path) -> dict[str, tuple[Read, list[bytes]]]:
    """By name: the function that reads an input, and the inputs that are mutated. `folder` gets an artifact."""
    film = {"save_all": True, "append_images": [picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]}
    images = [
        *SAMPLES.values(),
        encode(picture(), "HEIF"),
        *(encode(picture(), name, **film) for name in ("AVIF", "GIF")),
    ]
    images += [encode(picture().convert("RGBA"), name) for name in ("PNG", "WEBP", "AVIF", "TIFF")]
    images += [file.read_bytes() for file in sorted(CORPUS.iterdir())]
    add(folder)
    version = folder / "net" / "1"
    return {
        "image": (read_photo, images),
        "form": (read_form, forms(images)),
        "artifact": (artifact_reader(folder), [(version / MANIFEST).read_bytes(), (version / LABELS).read_bytes()]),
    }
