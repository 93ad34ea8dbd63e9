"""Values made of files, which are made again when the files have changed."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_CHECK_EVERY_S = 1.0

log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What `load` makes of the files at `paths`. It looks at most once a second whether they have changed.

    The first load raises what `load` does. If a later one fails, the log says so and the older value stays.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T], now: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._load = load
        self._now = now
        self._checked_s = now()
        self._stamps = self._read_stamps()
        self._value = load()

    @property
    def value(self) -> T:
        now = self._now()
        if now - self._checked_s >= _CHECK_EVERY_S:
            self._checked_s = now
            stamps = self._read_stamps()
            if stamps != self._stamps:
                self._stamps = stamps
                self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
            log.info("read again: %s", ", ".join(map(str, self._paths)))
        except (OSError, ValueError) as error:
            log.error("%s; what was read before stays in force", error)

    def _read_stamps(self) -> list[tuple[int, ...]]:
        """For each file its time, size and inode, which show a change; nothing for a missing file."""
        stamps: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append(())
        return stamps
