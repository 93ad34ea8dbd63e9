"""Real engines whose answers a test changes, in place of those that the parity gate opens."""

from collections.abc import Callable

import pytest

from export import parity_gate
from export.parity_gate import EngineKind
from models.artifact.artifact import Artifact
from service.common.types import EngineInfo, Precision, Probabilities, Rows, Runtime
from service.engines.base import Engine
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions

Change = Callable[[Probabilities], Probabilities]


class DistortedEngine(Engine):
    """An engine in f32 whose answers are changed, and which says that it computes in `precision`."""

    def __init__(self, engine: Engine, change: Change, precision: Precision) -> None:
        self._engine = engine
        self._change = change
        self._precision = precision

    def run(self, rows: Rows) -> Probabilities:
        return self._change(self._engine.run(rows))

    def describe(self) -> EngineInfo:
        info = self._engine.describe()
        return EngineInfo(info.runtime, info.version, info.device, self._precision)

    def close(self) -> None:
        self._engine.close()


def distort(monkeypatch: pytest.MonkeyPatch, changes: dict[EngineKind, Change | None]) -> None:
    """Let the gate find these engines and no others, and change the answers of those that have a change."""

    def build(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
        change = changes[EngineKind(runtime, precision)] or (lambda given: given)
        return DistortedEngine(build_engine(artifact, runtime, Precision.F32, options), change, precision)

    monkeypatch.setattr(parity_gate, "engine_kinds", lambda: list(changes))
    monkeypatch.setattr(parity_gate, "build_engine", build)
