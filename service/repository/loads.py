"""Loads in progress: one at a time for each model, shared by the requests that wait, each of which keeps the model."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

from models.artifact.artifact import ArtifactError, NotExportedError
from service.common.clock import Clock
from service.common.errors import ModelNotFound, NotReady, ShuttingDown
from service.common.metrics import Metrics
from service.engines.base import EngineUnavailableError, card_lost
from service.repository.device_memory import OverBudgetError
from service.repository.exported import ExportedModels, damage_of
from service.repository.loaded_model import Lease, LoadedModel
from service.repository.loader import ModelKey, ModelLoader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadInProgress:
    """The task of a load, and the leases of the requests that wait for it."""

    task: asyncio.Task[LoadedModel]
    leases: list[Lease] = field(default_factory=list)

    async def result(self, lease: Lease | None = None) -> LoadedModel:
        """The model, which `lease` keeps. Raises the errors of the load, and ShuttingDown if it was cancelled."""
        if lease is not None:
            self.leases.append(lease)
            lease.begin_wait()
        try:
            return await asyncio.shield(self.task)  # a caller that leaves does not cancel it for the others
        except asyncio.CancelledError:
            if self.task.cancelled():  # the caller has not left
                raise ShuttingDown from None
            raise
        finally:
            self._leave(lease)

    def end(self, model: LoadedModel | None) -> None:
        """End the wait of all requests. Their leases keep the model, if the load gave one."""
        for lease in list(self.leases):
            self._leave(lease)
            if model is not None:
                lease.add(model)

    def _leave(self, lease: Lease | None) -> None:
        """Remove the lease of a request that stops waiting, if it still waits."""
        if lease in self.leases:
            self.leases.remove(lease)
            lease.end_wait()


class Loads:
    """Runs the loads of a repository, each in a task of its own, and remembers why the last ones failed."""

    def __init__(
        self,
        exported: ExportedModels,
        loader: ModelLoader,
        *,
        clock: Clock,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        self._exported = exported
        self._loader = loader
        self._loaded = loader.loaded
        self._clock = clock
        self._metrics = metrics
        self._on_change = on_change
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._running: dict[ModelKey, LoadInProgress] = {}
        self._failed: dict[ModelKey, str] = {}
        self.replacing: set[str] = set()
        """Models of which another version is being loaded to take over."""
        self.card_lost: str | None = None
        """Why a load found that this process can no longer use an NVIDIA GPU, or None."""

    def turn(self, name: str) -> asyncio.Lock:
        """The lock that a load of the model holds, so that no version is in memory twice."""
        return self._turns.setdefault(name, asyncio.Lock())

    def running(self, name: str, version: int | None) -> bool:
        return (name, version) in self._running

    def failure(self, name: str, version: int | None) -> str | None:
        """Why the last load of that version failed; None if none did since the version was loaded."""
        return self._failed.get((name, version))

    def load(self, name: str, version: int | None) -> LoadInProgress:
        """The load of a model that is not loaded; it is begun if none is in progress."""
        return self._running.get((name, version)) or self._begin(name, version, self._load(name, version))

    async def replace(self, name: str, version: int | None, then: Callable[[LoadedModel], None]) -> LoadedModel:
        """The version, loaded to answer requests that name none. The one that did so before is retired.

        `then` is called with the model in the turn of the load, whether or not the caller still waits for it.
        """
        while (earlier := self._running.get((name, version))) is not None:
            await asyncio.wait({earlier.task})  # it may have read the folder before it changed
        return await self._begin(name, version, self._replace(name, version, then)).result()

    async def aclose(self) -> None:
        """Abandon every load in progress. An engine is closed once it is open."""
        tasks = [loading.task for loading in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()  # loads that had not begun

    def _begin(self, name: str, version: int | None, work: Coroutine[None, None, LoadedModel]) -> LoadInProgress:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # if all callers leave
        loading = self._running[name, version] = LoadInProgress(task)
        return loading

    async def _load(self, name: str, version: int | None) -> LoadedModel:
        model = None
        try:
            async with self.turn(name):
                await self._loader.wait_unloaded(name)
                model = self._loaded.get((name, version)) or await self._load_artifact(name, version)
                self._loaded[name, version] = model
        finally:  # in the same turn of the loop: nobody can unload it before the leases hold it
            self._running.pop((name, version)).end(model)
        self._on_change()
        return model

    async def _replace(self, name: str, version: int | None, then: Callable[[LoadedModel], None]) -> LoadedModel:
        model = None
        try:
            async with self.turn(name):
                self.replacing.add(name)
                await self._loader.wait_unloaded(name)
                model = await self._load_artifact(name, version)
                previous = self._loaded.get((name, None))
                self._loaded[name, None] = model
                then(model)
                if previous is not None and previous is not model:
                    self._loader.retire(previous)
        finally:
            self.replacing.discard(name)
            self._running.pop((name, version)).end(model)
        self._on_change()
        return model

    async def _load_artifact(self, name: str, version: int | None) -> LoadedModel:
        started, loaded = self._clock.now(), set(self._loaded.values())
        try:
            model = await self._loader.load(partial(self._exported.read, name, version))
        except NotExportedError as error:
            raise ModelNotFound(str(error)) from error
        except (ArtifactError, EngineUnavailableError, OverBudgetError, OSError) as error:
            self._running[name, version].end(None)  # before listeners look at the models that its requests hold
            self.card_lost = self.card_lost or card_lost(error)
            self._metrics.failed_loads.labels(name).inc()
            reason = self._failed[name, version] = f"{name} cannot be loaded: {error}"
            self._on_change()
            raise NotReady(reason) from error
        self._failed.pop((name, version), None)
        if model not in loaded:
            info, artifact = model.engine_info, model.artifact
            log.info(
                "loaded %s version %d%s, weights %s, on %s %s (%s, %s; %s) in %.1f s",
                *(name, artifact.version, ", which comes with topfive" if artifact.manifest.packaged else ""),
                artifact.manifest.weights.source,
                *(info.runtime, info.version, info.device, info.precision, model.layout, self._clock.now() - started),
            )
            for warning in model.warnings:
                log.warning(warning)
        if damage := damage_of(model.artifact.version, model.artifact.damaged_newer):
            self._metrics.failed_loads.labels(name).inc()
            log.warning(damage)
        return model
