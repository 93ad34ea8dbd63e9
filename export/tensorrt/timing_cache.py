"""TensorRT's timing cache as a file: what it measured on a card, so that the next build need not measure it again."""

import hashlib
import logging
import re
from pathlib import Path

from models.artifact.files import write_atomically

log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


class TimingCacheFile:
    """The cache of one TensorRT version on one kind of card, in `folder`. The file is a sha256, then what it covers."""

    def __init__(self, folder: Path, version: str, card: str) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        self.path = folder / "timing" / f"tensorrt-{version}-{slug}.cache"

    def read(self) -> bytes:
        """What it holds; nothing where it is not there or damaged, because a cache only saves time."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            log.warning("the timing cache %s cannot be read and is not used: %s", self.path, error.strerror)
            return b""
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            log.warning("the timing cache %s is damaged and is not used", self.path)
            return b""
        return body

    def write(self, body: bytes) -> None:
        """Replace it in one step; where the folder cannot be written that is logged, and the build stands."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            log.warning("the timing cache %s cannot be written: %s", self.path, error.strerror)
