"""Builds the data plane of this process from the settings. It starts nothing and opens no port."""

from functools import partial

from models.catalog import CATALOG, Catalog
from service.common.clock import LoopClock
from service.common.cpus import cpu_quota
from service.common.gpus import cards
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.types import BatchLimits
from service.engines.base import CPU, Engine
from service.engines.selection.opening import OpenEngine
from service.engines.selection.select import EngineOptions
from service.inference.local import LocalDataPlane
from service.preprocessing.decode import limit_pixels
from service.preprocessing.preprocessor import Preprocessor
from service.repository.device_discovery import devices
from service.repository.device_memory import Device
from service.repository.exported import ExportedModels
from service.repository.model_folders import ModelFolders
from service.repository.repository import Repository


def build_data_plane(
    settings: Settings, *, catalog: Catalog = CATALOG, open_engine: OpenEngine | None = None
) -> LocalDataPlane:
    """A data plane without loaded models. `open_engine` replaces the engines that the settings select."""
    cpus = settings.cpus or cpu_quota()
    options = EngineOptions(
        settings.runtime,
        settings.precision,
        cpus,
        settings.max_batch,
        cache=settings.cache_folder,
    )
    clock, metrics = LoopClock(), Metrics()
    folders = {catalog.canonical(name): folder for name, folder in settings.model_folders.items()}
    repository = Repository(
        ExportedModels(settings.artifacts, catalog, ModelFolders(folders)),
        partial(_devices, options, settings.memory_budget_mib, open_engine),
        limits=partial(_limits, settings),
        clock=clock,
        metrics=metrics,
        control=settings.model_control,
    )
    limit_pixels(settings.limits)
    preprocessor = Preprocessor(settings.limits, threads=cpus, clock=clock, mode=settings.decode)
    return LocalDataPlane(repository, preprocessor, clock=clock, metrics=metrics)


def _devices(options: EngineOptions, budget_mib: int, open_engine: OpenEngine | None) -> list[Device]:
    return [Device(CPU, open_engine, budget_mib << 20)] if open_engine else devices(options, budget_mib, cards)


def _limits(settings: Settings, engine: Engine) -> BatchLimits:
    return BatchLimits(
        slots=engine.slots,
        max_batch=engine.max_batch,
        capacity=settings.capacity,
        max_queue_s=settings.max_queue_s,
        slo_s=settings.slo_ms / 1000,
        apart=engine.device == CPU,
    )
