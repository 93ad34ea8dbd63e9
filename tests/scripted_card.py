"""Where tests open TensorRT engines without a card: a scripted card, a scripted TensorRT and a plan on disk."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from models.artifact.artifact import Artifact
from models.artifact.engine_plan import BatchProfile, ComputeCapability, EnginePlan, Flavour, PlanRecord
from service.common.gpus import Card
from service.common.types import Batch
from service.engines.tensorrt.engine import Libraries, TensorRtEngine
from service.engines.tensorrt.slot import Launch
from tests.fake_cuda import FakeCudart, Script
from tests.fake_tensorrt import FakeTensorRt, plan_bytes

SIZE, CLASSES = 4, 10
PROFILE = (1, 8, 32)
CARD = Card(0, "NVIDIA GeForce RTX 2080 Ti", ComputeCapability(7, 5), 11 << 30, 10 << 30)


def pixels(count: int, seed: int = 0) -> Batch:
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@dataclass
class ScriptedCard:
    """A card, a TensorRT and a plan, to open engines on."""

    folder: Path
    flavour: Flavour = Flavour.TENSORRT
    script: Script = field(default_factory=Script)
    capacity: int = 1 << 30
    profile: tuple[int, int, int] = PROFILE
    changes: dict[str, Any] = field(default_factory=dict)
    card: Card = CARD
    driver: str = "580.82.07"

    def __post_init__(self) -> None:
        self.cudart = FakeCudart(self.script, capacity=self.capacity)
        self.trt = FakeTensorRt(self.cudart, self.flavour)

    def plan(self) -> EnginePlan:
        """A plan on disk."""
        content = plan_bytes(SIZE, CLASSES, self.profile, **self.changes)
        smallest, best, largest = self.profile
        record = PlanRecord(
            flavour=self.flavour,
            version="1",
            targets=("sm75",),
            precision="fp16",
            profile=BatchProfile(smallest=smallest, best=best, largest=largest),
            card=self.card.name,
            graph_sha256="g",
            source_sha256="s",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            build_s=0.5,
        )
        path = self.folder / "engine.plan"
        path.write_bytes(content)
        return EnginePlan(path, record)

    def open(self, *, slots: int = 1, max_batch: int = 8, launch: Launch = Launch.GRAPH) -> TensorRtEngine:
        """An engine."""
        manifest = SimpleNamespace(name="tiny", input=SimpleNamespace(crop=SIZE), classes=CLASSES)
        return TensorRtEngine(
            self.plan(),
            cast("Artifact", SimpleNamespace(manifest=manifest)),
            card=self.card,
            slots=slots,
            max_batch=max_batch,
            cache=self.folder / "cache",
            libraries=Libraries(self.trt, self.cudart, self.driver),
            launch=launch,
        )
