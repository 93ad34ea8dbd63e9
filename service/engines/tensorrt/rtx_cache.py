"""What TensorRT for RTX compiled on this machine, kept on disk: a process that starts again need not compile it."""

import hashlib
import logging
import re
from pathlib import Path

from models.artifact.files import write_atomically

LARGEST_BYTES = 100 << 20
"""A larger cache takes longer to read than it saves, by NVIDIA's word."""

_FOLDER = "tensorrt-rtx"
_DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


class RtxCacheFile:
    """One file: a digest and the cache of one plan on one kind of card under one driver.

    A file that is damaged, too large or cannot be read or written costs only the time to compile, and is logged.
    """

    def __init__(self, folder: Path, plan_sha256: str, card: str, driver: str) -> None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{card} {driver}")
        self.path = folder / _FOLDER / f"{plan_sha256}-{name}.cache"
        self._kept = b""

    def read(self) -> bytes | None:
        """What is kept, None where nothing usable is."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read (%s); kernels are compiled anew", self.path, error.strerror)
            return None
        digest, cache = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(cache).digest() != digest:
            log.warning("%s is damaged; kernels are compiled anew", self.path)
            return None
        self._kept = cache
        return cache

    def write(self, cache: bytes) -> None:
        """Keep it, in one step; nothing is written where it is what was read or written last."""
        if cache == self._kept:
            return
        if len(cache) > LARGEST_BYTES:
            log.warning("a cache of %d MB is too large to be kept in %s", len(cache) >> 20, self.path)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, hashlib.sha256(cache).digest() + cache)
        except OSError as error:
            log.warning("%s cannot be written (%s); kernels are compiled at each start", self.path, error.strerror)
            return
        self._kept = cache
