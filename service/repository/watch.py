"""Watches the folders of the loaded models, so that a version that is exported meanwhile takes over."""

import asyncio
import logging
import math
from collections.abc import Hashable

from service.common.clock import Clock, Timer
from service.common.errors import ShuttingDown, TopfiveError
from service.repository.repository import Repository

_EVERY_S = 2.0
_RETRY_S = 60.0  # after a failure that may pass by itself, such as one of memory

log = logging.getLogger(__name__)


class Watch:
    """Replaces a loaded model once its folder has changed and then stayed the same between two checks.

    So it does not read a folder that is still being copied. A version that cannot be loaded is tried again when the
    folder changes, or after a minute.
    """

    def __init__(self, repository: Repository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock
        self._seen: dict[str, Hashable] = {}
        self._tried: dict[str, tuple[Hashable, float]] = {}
        """What each folder was when its model was last loaded from it, and when to try that again."""
        self._timer: Timer | None = None
        self._checking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check the folders in two seconds, and again two seconds after each check."""
        self._timer = self._clock.call_at(self._clock.now() + _EVERY_S, self._begin)

    def stop(self) -> None:
        """End the checks. A load in progress goes on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._checking is not None:
            self._checking.cancel()

    def _begin(self) -> None:
        self._checking = asyncio.get_running_loop().create_task(self._check_all())

    async def _check_all(self) -> None:
        for name in self._repository.loaded:
            try:
                await self._check(name)
            except ShuttingDown:
                return
            except (TopfiveError, OSError) as error:
                log.warning("%s is not replaced: %s", name, error)
        self.start()

    async def _check(self, name: str) -> None:
        found = await self._repository.read(lambda: self._repository.signature(name))
        settled, self._seen[name] = self._seen.get(name) == found, found
        tried, again_at = self._tried.get(name, (None, 0.0))
        if settled and (tried != found or self._clock.now() >= again_at):
            self._tried[name] = found, self._clock.now() + _RETRY_S
            await self._repository.replace(name)
            self._tried[name] = found, math.inf
