"""The model repository: loads each version of a model once, gives it to requests, closes it, and reports on all."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.common.clock import Clock
from service.common.errors import BadRequest, ModelNotFound, NotReady, ShuttingDown
from service.common.metrics import Metrics
from service.common.model_info import ModelState, ModelVersion
from service.common.thread_pool import ThreadPool
from service.common.types import BatchLimits, ModelControl
from service.engines.base import Engine
from service.repository.device_memory import Device
from service.repository.exported import ExportedModels, ModelEntry
from service.repository.loaded_model import Lease, LoadedModel
from service.repository.loader import ModelLoader
from service.repository.loads import Loads

X = TypeVar("X")

_NONE_LOADED = "the server is starting, or every model was unloaded, so no model answers yet"

log = logging.getLogger(__name__)


class Repository:
    """Loads each version of a model once, at start, at a request or when it is told to, and reports on all.

    Configured models are never evicted. With `ModelControl.EXPLICIT` a request loads no model but the configured ones;
    `load` adds a model to these, and `unload` takes it from them.
    """

    def __init__(
        self,
        exported: ExportedModels,
        find_devices: Callable[[], Sequence[Device]],
        *,
        limits: Callable[[Engine], BatchLimits],
        clock: Clock,
        metrics: Metrics,
        control: ModelControl = ModelControl.NONE,
    ) -> None:
        self._exported = exported
        self._control = control
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
        self._loads = Loads(self._exported, self._loader, clock=clock, metrics=metrics, on_change=self._changed)
        self._unready = False
        self._closing = False
        self._listeners: list[Callable[[], None]] = []
        metrics.watch(self._gauges, "model", "version")

    def root_of(self, name: str) -> Path:
        """The folder of artifacts that has the model."""
        return self._exported.root_of(self.canonical(name))

    @property
    def default(self) -> str:
        """The name of the default model: the first configured one that is trained, or the first if none is.

        Raises NotReady before `start`.
        """
        if not self._configured:
            raise NotReady(_NONE_LOADED)
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
        lost = (model.card_lost for model in self._loaded.values() if model.card_lost)
        return self._loads.card_lost or next(lost, None)

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
            raise NotReady("; ".join(reasons) or self.card_lost or _NONE_LOADED)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever `ready` may have changed."""
        self._listeners.append(listener)

    def canonical(self, name: str) -> str:
        """The name that the model is loaded under: `NAME` for `NAME@TAG` if TAG is the default weight set."""
        return self._exported.catalog.canonical(name)

    async def start(self, names: Iterable[str]) -> None:
        """Load the configured models one after the other. A trained one becomes the default before an untrained one.

        Raises the errors of `get`, and NotReady if a model of --model cannot be linked.
        """
        self._configured = tuple(dict.fromkeys(map(self.canonical, names)))
        await self._exported.folders.link()
        models = [await self.get(name) for name in self._configured]
        untrained = {model.name for model in models if model.warnings}
        self._configured = tuple(sorted(self._configured, key=untrained.__contains__))
        if models and self._configured and self.default != models[0].name:
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
        if self._control is ModelControl.EXPLICIT and name not in self._configured:
            await self.read(partial(self._exported.check_known, name, version))
            raise ModelNotFound(f"{name} is not loaded, and requests load no model with --model-control explicit")
        return await self._loads.load(name, version).result(lease)

    async def replace(self, name: str, version: int | None = None) -> LoadedModel:
        """Load that version, or the newest whole one, to answer requests that name no version.

        The version that did so goes on until then, and is closed once its last request has ended. Raises the errors of
        `get`; then the old version goes on.
        """
        if self._closing:
            raise ShuttingDown
        return await self._loads.replace(self.canonical(name), version, lambda _: None)

    async def load(self, name: str, version: int | None = None) -> LoadedModel:
        """`replace` the model, and keep it loaded. Raises BadRequest unless the control is explicit."""
        self._check_explicit()
        if self._closing:
            raise ShuttingDown
        return await self._loads.replace(self.canonical(name), version, self._configure)

    async def unload(self, name: str) -> None:
        """Give no version of the model to further requests; each is closed once its last request has ended.

        Raises BadRequest unless the control is explicit, ModelNotFound if no version is loaded.
        """
        self._check_explicit()
        name = self.canonical(name)
        async with self._loads.turn(name):
            if not (models := {model for (one, _), model in self._loaded.items() if one == name}):
                raise ModelNotFound(f"{name} is not loaded")
            self._configured = tuple(one for one in self._configured if one != name)
            for model in models:
                self._loader.retire(model)
        self._changed()

    async def recover(self) -> None:
        """Run one blank image through each configured model that fails, so that it can recover without traffic."""
        for model in [self._loaded[name, None] for name in self.failing]:
            await model.probe()

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

    def versions(self) -> list[ModelVersion]:
        """Every version that is exported or loaded, by name and number. It reads no manifest."""
        newest = dict.fromkeys([(name, number) for name, number in list(self._loaded) if number is not None], False)
        for name in self._exported.names():
            numbers = self._exported.versions(name)
            newest.update({(name, number): number == numbers[-1] for number in numbers})
        return [self._version(name, number, newest[name, number]) for name, number in sorted(newest)]

    def signature(self, name: str) -> Hashable:
        """Something that differs once a version of the model has come, gone or changed."""
        return self._exported.signature(name)

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
        await self._loads.aclose()
        self._loader.stop()
        self._readers.close()
        await self._loader.aclose(drain_s)
        self._exported.folders.close()

    def _failure(self, name: str) -> str:
        """Why the model fails, with the stuck batches if they are the reason."""
        return f"{name} fails{self._loader.stuck_reason(self._loaded[name, None])}"

    def _configure(self, model: LoadedModel) -> None:
        self._configured = tuple(dict.fromkeys((*self._configured, model.name)))

    def _is_configured(self, model: LoadedModel) -> bool:
        """Whether the model stays loaded: it is configured, or serves while another version is loaded to take over."""
        kept = model.name in self._configured or model.name in self._loads.replacing
        return kept and self._loaded.get((model.name, None)) is model

    def _check_explicit(self) -> None:
        if self._control is not ModelControl.EXPLICIT:
            raise BadRequest("requests load and unload models only with --model-control explicit")

    def _entry(self, name: str, version: int | None = None) -> ModelEntry:
        loads, loaded = self._loads, self._loaded.get((name, version))
        return self._exported.entry(name, version, loaded, loads.running(name, version), loads.failure(name, version))

    def _version(self, name: str, number: int, newest: bool) -> ModelVersion:
        if (model := self._loaded.get((name, number))) is not None:
            return ModelVersion(name, number, ModelState.READY if model.healthy else ModelState.FAILING, "")
        asked = (number, None) if newest else (number,)  # what a load of this version was asked for
        loading = any(self._loads.running(name, version) for version in asked)
        reasons = [reason for version in asked if (reason := self._loads.failure(name, version))]
        state = ModelState.LOADING if loading else ModelState.EXPORTED
        return ModelVersion(name, number, state, "; ".join(reasons) or "not loaded")

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def _gauges(self) -> list[tuple[tuple[str, str], dict[str, float]]]:
        keyed = [(key, model) for key, model in self._loaded.items() if key[1] is not None]
        return [((name, str(version)), model.gauges) for (name, version), model in keyed]
