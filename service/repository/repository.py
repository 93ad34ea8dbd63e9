"""The model repository: loads each version of a model once, gives it to requests, closes it, and reports on all."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from models.artifact.artifact import ArtifactError, NotExportedError
from models.catalog import Catalog
from service.common.clock import Clock
from service.common.errors import ModelNotFound, NotReady, ShuttingDown
from service.common.metrics import Metrics
from service.common.thread_pool import ThreadPool
from service.common.types import BatchLimits
from service.engines.base import Engine, EngineUnavailableError, card_lost
from service.repository.device_memory import Device, OverBudgetError
from service.repository.exported import ExportedModels, ModelEntry, damage_of
from service.repository.loaded_model import Lease, LoadedModel
from service.repository.loader import ModelKey, ModelLoader

X = TypeVar("X")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Load:
    """A load in progress, and the leases of the requests that wait for it."""

    task: asyncio.Task[LoadedModel]
    leases: list[Lease] = field(default_factory=list)

    def wait(self, lease: Lease | None) -> None:
        if lease is not None:
            self.leases.append(lease)
            lease.begin_wait()

    def leave(self, lease: Lease | None) -> None:
        """Remove the lease of a request that stops waiting, if it still waits."""
        if lease in self.leases:
            self.leases.remove(lease)
            lease.end_wait()

    def end(self, model: LoadedModel | None) -> None:
        """End the wait of all requests. Their leases keep the model, if the load gave one."""
        for lease in list(self.leases):
            self.leave(lease)
            if model is not None:
                lease.add(model)


class Repository:
    """Loads each version of a model once, at start or at a request, and reports on all.

    Configured models are never unloaded.
    """

    def __init__(
        self,
        root: Path,
        catalog: Catalog,
        find_devices: Callable[[], Sequence[Device]],
        *,
        limits: Callable[[Engine], BatchLimits],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._exported = ExportedModels(root, catalog)
        self._clock = clock
        self._configured: tuple[str, ...] = ()
        self._loader = ModelLoader(
            find_devices,
            is_configured=self._is_configured,
            limits=limits,
            clock=clock,
            metrics=metrics,
            on_change=self._changed,
        )
        self._loaded = self._loader.loaded  # the loader fills this dictionary
        self._readers = ThreadPool(2, "artifacts")  # of its own: a disk that hangs keeps them
        self._loading: dict[ModelKey, _Load] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        """The versions of a model load one after the other, so that none is in memory twice."""
        self._unready = False
        self._closing = False
        self._card_lost: str | None = None
        self._listeners: list[Callable[[], None]] = []
        metrics.watch(self._gauges, "model", "version")

    @property
    def root(self) -> Path:
        return self._exported.root

    @property
    def default(self) -> str:
        """The name of the default model: the first configured one that is trained, or the first if none is.

        Raises NotReady before `start`.
        """
        if not self._configured:
            raise NotReady("the server is starting and has no default model yet")
        return self._configured[0]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded models: the configured ones in their order, then the others by name."""
        names = {name for name, version in self._loaded if version is None}
        first = [name for name in self._configured if name in names]
        return (*first, *sorted(names - set(first)))

    @property
    def alive(self) -> bool:
        """False if a model is lost (see `LoadedModel.lost`). Then a supervisor should restart the process."""
        return not any(model.lost for model in self._loaded.values())

    @property
    def ready(self) -> bool:
        """Whether `check_ready` raises nothing."""
        return bool(self._configured) and not (self._unready or self._absent or self.failing or self.card_lost)

    @property
    def card_lost(self) -> str | None:
        """Why this process can no longer use an NVIDIA GPU, or None. Only a new process can."""
        return self._card_lost or next((model.card_lost for model in self._loaded.values() if model.card_lost), None)

    @property
    def failing(self) -> list[str]:
        """Names of the configured models that are loaded but not healthy (see `LoadedModel.healthy`)."""
        return [name for name in self._configured if (model := self.loaded_model(name)) and not model.healthy]

    @property
    def _absent(self) -> list[str]:
        return [name for name in self._configured if (name, None) not in self._loaded]

    def check_ready(self) -> None:
        """Raise NotReady or ShuttingDown unless every configured model is loaded, warm and answering."""
        if self._unready:
            raise ShuttingDown
        if not self.ready:
            reasons = [f"{name} is being loaded" for name in self._absent] + [self._failure(n) for n in self.failing]
            raise NotReady("; ".join(reasons) or self.card_lost or "the server is starting")

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever `ready` may have changed."""
        self._listeners.append(listener)

    def canonical(self, name: str) -> str:
        """The name that the model is loaded under: `NAME` for `NAME@TAG` if TAG is the default weight set."""
        return self._exported.catalog.canonical(name)

    async def start(self, names: Iterable[str]) -> None:
        """Load the configured models one after the other. A trained one becomes the default before an untrained one.

        Raises the errors of `get`.
        """
        self._configured = tuple(dict.fromkeys(map(self.canonical, names)))
        models = [await self.get(name) for name in self._configured]
        self._configured = tuple(model.name for model in sorted(models, key=lambda model: bool(model.warnings)))
        if models and self.default != models[0].name:
            log.warning("%s is untrained, so %s answers if a request names no model", models[0].name, self.default)

    def loaded_model(self, name: str | None, version: int | None = None) -> LoadedModel | None:
        """The model, or the default one for None, if it is loaded in that version, or for None in any."""
        return self._loaded.get((name or next(iter(self._configured), ""), version))

    async def get(self, name: str, lease: Lease | None = None, version: int | None = None) -> LoadedModel:
        """The model of that name. It is loaded first if needed; concurrent callers share one load.

        `version` None is the one that is loaded for requests without a version, or else the newest whole one. `lease`
        keeps the model loaded; without one it may be unloaded at any time, unless it is configured. Raises
        ModelNotFound if it is unknown or not exported, NotReady if it cannot be loaded, ShuttingDown.
        """
        model = self._loaded.get((name, version)) or self._loaded.get((name := self.canonical(name), version))
        if model is not None:
            if lease is not None:
                lease.add(model)
            return model
        if self._closing:
            raise ShuttingDown
        if (loading := self._loading.get(key := (name, version))) is None:
            loading = self._loading[key] = _Load(asyncio.get_running_loop().create_task(self._load(name, version)))
            loading.task.add_done_callback(lambda done: done.cancelled() or done.exception())  # if all callers leave
        loading.wait(lease)
        try:
            return await asyncio.shield(loading.task)  # a caller that leaves does not cancel it for the others
        except asyncio.CancelledError:
            if loading.task.cancelled():  # cancelled by `aclose`; the caller has not left
                raise ShuttingDown from None
            raise
        finally:
            loading.leave(lease)

    async def recover(self) -> None:
        """Run one blank image through each configured model that fails, so that it can recover without traffic."""
        for name in self.failing:
            await self._loaded[name, None].probe()

    async def read(self, work: Callable[[], X]) -> X:
        """The result of `work`, which reads artifacts, on a thread that does nothing else."""
        return await self._readers.run(work)

    def entries(self) -> list[ModelEntry]:
        """Every model of the catalog, and every other exported one, by name."""
        found = [self._entry(name) for name in self._exported.names()]
        return [entry for entry in found if entry.architecture is not None or entry.exported is not None]

    def entry(self, name: str, version: int | None = None) -> ModelEntry:
        """One entry. Raises ModelNotFound, or NotReady if the model has only a damaged manifest."""
        name = self.canonical(name)
        self._exported.check_known(name, version)
        entry = self._entry(name, version)
        if entry.architecture is None and entry.exported is None:
            raise NotReady(entry.damage or f"{name} was removed meanwhile")
        return entry

    def turn_unready(self) -> None:
        """Turn readiness off. Requests are still answered, and models still loaded for them."""
        self._unready = True
        self._changed()

    def stop(self) -> None:
        """Turn readiness off and load no further model. Accepted requests are still answered."""
        self._closing = True
        self.turn_unready()

    async def aclose(self, drain_s: float) -> None:
        """Drain and close every model. A load in progress is abandoned, and its engine closed once it is open."""
        self.stop()
        tasks = [loading.task for loading in self._loading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loading.clear()  # loads that had not begun
        self._loader.stop()
        self._readers.close()
        await self._loader.aclose(drain_s)

    def _failure(self, name: str) -> str:
        """Why the model fails, with the stuck batches if they are the reason."""
        return f"{name} fails{self._loader.stuck_reason(self._loaded[name, None])}"

    def _is_configured(self, model: LoadedModel) -> bool:
        return model.name in self._configured and self._loaded.get((model.name, None)) is model

    async def _load(self, name: str, version: int | None) -> LoadedModel:
        model = None
        try:
            async with self._turns.setdefault(name, asyncio.Lock()):
                await self._loader.unloaded(name)
                model = self._loaded.get((name, version)) or await self._load_artifact(name, version)
        finally:  # in the same turn of the loop: nobody can unload it before the leases hold it
            self._loading.pop((name, version)).end(model)
        self._changed()
        return model

    async def _load_artifact(self, name: str, version: int | None) -> LoadedModel:
        started = self._clock.now()
        try:
            model = await self._loader.load(partial(self._exported.read, name, version))
        except NotExportedError as error:
            raise ModelNotFound(str(error)) from error
        except (ArtifactError, EngineUnavailableError, OverBudgetError, OSError) as error:
            self._loading[name, version].end(None)  # before listeners look at the models that its requests hold
            self._card_lost = self._card_lost or card_lost(error)
            self._changed()
            raise NotReady(f"{name} cannot be loaded: {error}") from error
        self._loaded.setdefault((name, version), model)
        info = model.engine_info
        log.info(
            "loaded %s version %d%s, weights %s, on %s %s (%s, %s; %s) in %.1f s",
            *(name, model.artifact.version, ", which comes with topfive" if model.artifact.manifest.packaged else ""),
            model.artifact.manifest.weights.source,
            *(info.runtime, info.version, info.device, info.precision, model.layout, self._clock.now() - started),
        )
        for warning in filter(None, [*model.warnings, damage_of(model.artifact.version, model.artifact.damaged_newer)]):
            log.warning(warning)
        return model

    def _entry(self, name: str, version: int | None = None) -> ModelEntry:
        key = name, version
        return self._exported.entry(name, version, self._loaded.get(key), key in self._loading)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def _gauges(self) -> list[tuple[tuple[str, str], dict[str, float]]]:
        keyed = [(key, model) for key, model in self._loaded.items() if key[1] is not None]
        return [((name, str(version)), model.gauges) for (name, version), model in keyed]
