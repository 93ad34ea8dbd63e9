"""The model repository: which models are known, exported and loaded. Loads each once, and closes them."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from models.artifact.artifact import (
    Artifact,
    ArtifactError,
    Manifest,
    NotExportedError,
    exported_names,
    load,
    newest_whole,
    read_manifest,
)
from models.artifact.measured import read_measured
from models.catalog import Architecture, Catalog, UnknownModelError
from service.common.clock import Clock
from service.common.errors import ModelNotFound, NotReady, ShuttingDown
from service.common.metrics import Metrics
from service.common.model_info import ModelState
from service.common.thread_pool import ThreadPool
from service.common.types import ENSEMBLE_PREFIX, BatchLimits
from service.engines.base import Engine, EngineUnavailableError, card_lost
from service.repository.device_memory import Device, OverBudgetError
from service.repository.loaded_model import Lease, LoadedModel
from service.repository.loader import ModelLoader

X = TypeVar("X")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of the catalog, an exported model, or both. `architecture` is None if it is not in the catalog.

    `exported` is the newest version that can be read, and its manifest. `damage` says why newer ones cannot be read.
    """

    name: str
    state: ModelState
    architecture: Architecture | None
    exported: tuple[int, Manifest] | None
    loaded: LoadedModel | None
    damage: str | None = None


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
    """Loads each model once, at start or at a request, and reports on all. Configured models are never unloaded."""

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
        self._root = root
        self._catalog = catalog
        self._clock = clock
        self._configured: tuple[str, ...] = ()
        self._loader = ModelLoader(
            find_devices,
            is_configured=lambda name: name in self._configured,
            limits=limits,
            clock=clock,
            metrics=metrics,
            on_change=self._changed,
        )
        self._loaded = self._loader.loaded  # the loader fills this dictionary
        self._readers = ThreadPool(2, "artifacts")  # of its own: a disk that hangs keeps them
        self._loading: dict[str, _Load] = {}
        self._unready = False
        self._closing = False
        self._card_lost: str | None = None
        self._listeners: list[Callable[[], None]] = []
        metrics.watch(self._gauges)

    @property
    def root(self) -> Path:
        return self._root

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
        first = [name for name in self._configured if name in self._loaded]
        return (*first, *sorted(self._loaded.keys() - set(first)))

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
        return [name for name in self._configured if name in self._loaded and not self._loaded[name].healthy]

    @property
    def _absent(self) -> list[str]:
        return [name for name in self._configured if name not in self._loaded]

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
        return self._catalog.canonical(name)

    async def start(self, names: Iterable[str]) -> None:
        """Load the configured models one after the other. A trained one becomes the default before an untrained one.

        Raises the errors of `get`.
        """
        self._configured = tuple(dict.fromkeys(self._catalog.canonical(name) for name in names))
        models = [await self.get(name) for name in self._configured]
        self._configured = tuple(model.name for model in sorted(models, key=lambda model: bool(model.warnings)))
        if models and self.default != models[0].name:
            log.warning("%s is untrained, so %s answers if a request names no model", models[0].name, self.default)

    def loaded_model(self, name: str | None) -> LoadedModel | None:
        """The model, or the default one for None, if it is loaded."""
        return self._loaded.get(name or next(iter(self._configured), ""))

    async def get(self, name: str, lease: Lease | None = None) -> LoadedModel:
        """The model of that name. It is loaded first if needed; concurrent callers share one load.

        `lease` keeps it loaded; without one it may be unloaded at any time, unless it is configured. Raises
        ModelNotFound if it is unknown or not exported, NotReady if it cannot be loaded, ShuttingDown.
        """
        model = self._loaded.get(name) or self._loaded.get(name := self._catalog.canonical(name))
        if model is not None:
            if lease is not None:
                lease.add(model)
            return model
        if self._closing:
            raise ShuttingDown
        if (loading := self._loading.get(name)) is None:
            loading = self._loading[name] = _Load(asyncio.get_running_loop().create_task(self._load(name)))
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
            await self._loaded[name].probe()

    async def read(self, work: Callable[[], X]) -> X:
        """The result of `work`, which reads artifacts, on a thread that does nothing else."""
        return await self._readers.run(work)

    def entries(self) -> list[ModelEntry]:
        """Every model of the catalog, and every other exported one, by name."""
        found = [self._entry(name) for name in sorted({*self._catalog.names(), *exported_names(self._root)})]
        return [entry for entry in found if entry.architecture is not None or entry.exported is not None]

    def entry(self, name: str) -> ModelEntry:
        """One entry. Raises ModelNotFound, or NotReady if the model has only a damaged manifest."""
        name = self._catalog.canonical(name)
        self._check_known(name)
        entry = self._entry(name)
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
        return f"{name} fails{self._loader.stuck_reason(self._loaded[name])}"

    def _check_known(self, name: str) -> None:
        if name.startswith(ENSEMBLE_PREFIX):
            raise ModelNotFound("an ensemble is made at each request and has no page; ask for its members one by one")
        if name not in self._catalog and name not in (exported := exported_names(self._root)):
            raise ModelNotFound(str(UnknownModelError(name, {*self._catalog.names(), *exported})))

    async def _load(self, name: str) -> LoadedModel:
        model = None
        try:
            await self._loader.unloaded(name)  # else it would be in memory twice
            model = self._loaded.get(name) or await self._load_artifact(name)
        finally:  # in the same turn of the loop: nobody can unload it before the leases hold it
            self._loading.pop(name).end(model)
        self._changed()
        return model

    async def _load_artifact(self, name: str) -> LoadedModel:
        started = self._clock.now()
        try:
            model = await self._loader.load(partial(self._read, name))
        except NotExportedError as error:
            raise ModelNotFound(str(error)) from error
        except (ArtifactError, EngineUnavailableError, OverBudgetError, OSError) as error:
            self._loading[name].end(None)  # before listeners look at the models that its requests hold
            self._card_lost = self._card_lost or card_lost(error)
            self._changed()
            raise NotReady(f"{name} cannot be loaded: {error}") from error
        info = model.engine_info
        log.info(
            "loaded %s version %d%s, weights %s, on %s %s (%s, %s; %s) in %.1f s",
            *(name, model.artifact.version, ", which comes with topfive" if model.artifact.manifest.packaged else ""),
            model.artifact.manifest.weights.source,
            *(info.runtime, info.version, info.device, info.precision, model.layout, self._clock.now() - started),
        )
        for warning in filter(None, [*model.warnings, _damage(model.artifact.version, model.artifact.damaged_newer)]):
            log.warning(warning)
        return model

    def _read(self, name: str) -> Artifact:
        """The newest whole version. Called on a thread: the disk may hang."""
        self._check_known(name)
        artifact, damaged = newest_whole(self._root, name, load)
        return replace(artifact, damaged_newer=damaged)

    def _entry(self, name: str) -> ModelEntry:
        loaded = self._loaded.get(name)
        exported: tuple[int, Manifest] | None = None
        damage: str | None = None
        if loaded is not None:
            exported = (loaded.artifact.version, _up_to_date(loaded.artifact))
            damage = _damage(loaded.artifact.version, loaded.artifact.damaged_newer)
            state = ModelState.READY if loaded.healthy else ModelState.FAILING
        else:
            try:
                (version, manifest), newer = newest_whole(self._root, name, read_manifest)
                exported, damage = (version, manifest), _damage(version, newer)
                state = ModelState.LOADING if name in self._loading else ModelState.EXPORTED
            except ArtifactError as error:
                damage = None if isinstance(error, NotExportedError) else str(error)
                state = ModelState.NOT_EXPORTED
            if damage is not None:
                log.warning("%s", damage)
        architecture = self._catalog.get(name)
        return ModelEntry(name, state, architecture, exported, loaded, damage)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def _gauges(self) -> list[tuple[str, dict[str, float]]]:
        return [(name, model.gauges) for name, model in self._loaded.items()]


def _damage(version: int, newer: Sequence[str]) -> str | None:
    """That this version serves in place of the newer ones, which have these damages; None if there are none."""
    return f"version {version} serves, because a newer one is damaged: {'; '.join(newer)}" if newer else None


def _up_to_date(artifact: Artifact) -> Manifest:
    """The manifest, with what other processes have measured since the model was loaded."""
    measured = read_measured(artifact.manifest_file)
    return artifact.manifest if measured is None else artifact.manifest.model_copy(update={"measured": measured})
