"""Probes a failing model, so that it can become ready again although a load balancer sends it no traffic."""

import asyncio
import logging

from service.common.clock import Clock, Timer
from service.repository.repository import Repository

log = logging.getLogger(__name__)


class Recovery:
    """While a configured model fails, runs one blank image through it every `every_s` seconds."""

    def __init__(self, repository: Repository, clock: Clock, every_s: float) -> None:
        self._repository = repository
        self._clock = clock
        self._every_s = every_s
        self._timer: Timer | None = None
        self._trying: asyncio.Task[None] | None = None
        repository.on_change(self._consider)

    def _consider(self) -> None:
        """Set the timer if a model fails and no timer is set."""
        if self._repository.failing and self._timer is None and self._trying is None:
            self._timer = self._clock.call_at(self._clock.now() + self._every_s, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._trying = asyncio.get_running_loop().create_task(self._try())

    async def _try(self) -> None:
        try:
            await self._repository.recover()
        finally:
            self._trying = None
            self._consider()
