"""Opens one engine: builds it, runs its first batches, and where nothing is known of its answers, checks them."""

from collections.abc import Callable

import numpy as np

from models.artifact.artifact import Artifact, ParityReport
from models.artifact.engine_plan import PlanError
from models.artifact.reference import REFERENCE
from service.common.types import Runtime
from service.engines.base import CardLostError, Engine, EngineUnavailableError
from service.engines.selection.parity_gate import Gate, reference_of

Build = Callable[[], Engine]


def warm_up(engine: Engine, size: int) -> None:
    """Run a batch of one and one of `max_batch`, so that no caller pays for memory and compilation."""
    for batch in (1, engine.max_batch):
        engine.run(np.zeros((batch, size, size, 3), dtype=np.uint8))


def open_unchecked(artifact: Artifact, runtime: Runtime, build: Build) -> Engine:
    """A warm engine whose answers the export has checked. Raises EngineUnavailableError, with nothing left open."""
    try:
        engine = build()
    except PlanError as error:
        raise EngineUnavailableError(str(error)) from error
    try:
        warm_up(engine, artifact.manifest.input.crop)
    except CardLostError:
        engine.close()
        raise
    except Exception as error:  # a runtime's own exceptions have no common base
        engine.close()
        raise EngineUnavailableError(f"{runtime} fails on its first batches: {error}") from error
    return engine


def open_checked(artifact: Artifact, runtime: Runtime, build: Build, gate: Gate) -> tuple[Engine, ParityReport]:
    """A warm engine that has passed `gate`, now or at an earlier load, and the report.

    Raises EngineUnavailableError, with nothing left open, also where it did not pass. One that did not pass at an
    earlier load is not built again.
    """
    if (kept := gate.kept()) is not None:
        gate.check(kept)
        return open_unchecked(artifact, runtime, build), kept
    reference = reference_of(artifact)
    engine = open_unchecked(artifact, runtime, build)
    try:
        report = gate.measure(engine, reference)
        gate.check(report)
    except (EngineUnavailableError, CardLostError):
        engine.close()
        raise
    except Exception as error:  # a runtime's own exceptions have no common base
        engine.close()
        raise EngineUnavailableError(f"{runtime} fails while its answers are checked: {error}") from error
    return engine, report


def check_known(gate: Gate) -> None:
    """Raise EngineUnavailableError where `open_checked` would, for all that is known before the engine is built."""
    if (kept := gate.kept()) is not None:
        gate.check(kept)
    elif REFERENCE not in gate.artifact.manifest.files:
        reference_of(gate.artifact)
