"""The card, models exported for these tests, and the engines that this card can run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from models.artifact.artifact import Artifact, load
from models.artifact.engine_plan import ComputeCapability, EnginePlan, Flavour, read_plans
from service.common.gpus import Card, Cards, cards
from service.common.types import Precision, Runtime
from service.engines.base import Engine
from service.engines.onnxruntime import OnnxRuntimeEngine, has_cuda
from service.engines.tensorrt import packages
from service.engines.tensorrt.engine import TensorRtEngine
from service.engines.tensorrt.slot import Launch
from service.engines.torch import TorchEngine

MAX_BATCH = 32
MODELS = ("tiny", "squeezenet1_1", "googlenet", "resnet50")
TOPFIVE = Path(sys.executable).with_name("topfive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a card."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@cache
def found() -> Cards:
    """The cards; asked for once."""
    return cards()


@pytest.fixture(scope="session")
def card() -> Card:
    """The first card."""
    if not found().found:
        pytest.skip(f"needs an NVIDIA card: {found().reason}")
    return found().found[0]


@dataclass(frozen=True, slots=True)
class Kind:
    """A runtime and a precision."""

    runtime: Runtime
    precision: Precision

    def __str__(self) -> str:
        return f"{self.runtime}-{self.precision}"


KINDS = (
    Kind(Runtime.TENSORRT, Precision.FP16),
    Kind(Runtime.TENSORRT, Precision.F32),
    Kind(Runtime.TENSORRT_RTX, Precision.FP16),
    Kind(Runtime.TENSORRT_RTX, Precision.F32),
    Kind(Runtime.ONNXRUNTIME_CUDA, Precision.F32),
)
TRAINED = "lenet5"
"""The model whose trained weights come with the project; rounding to int8 leaves nothing of an untrained one."""
PLANS = tuple(kind for kind in KINDS if kind.runtime is not Runtime.ONNXRUNTIME_CUDA)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Exports models and builds engines, each once in a session; skips what this machine or card cannot have."""

    root: Path
    card: Card

    def artifact(self, model: str) -> Artifact:
        """The exported model, untrained unless its weights come with the project: its answers are compared."""
        if not (self.root / model).is_dir():
            self._topfive("export", model, "--weights", self._weights(model))
        return load(self.root, model)

    def plan(self, model: str, kind: Kind) -> EnginePlan:
        """The engine for this card; skips what is not installed and what TensorRT for RTX has for no such card."""
        flavour, artifact = Flavour(kind.runtime.value), self.artifact(model)
        if not packages.is_installed(flavour):
            pytest.skip(f"{flavour} is not installed")
        if flavour is Flavour.TENSORRT_RTX:
            known = packages.module(flavour).ComputeCapability.__members__
            if str(self.card.target).upper() not in known:
                pytest.skip(f"TensorRT for RTX builds nothing for {self.card.name} ({self.card.target})")
            if self.card.target == ComputeCapability(7, 5) and kind.precision is Precision.F32:
                pytest.skip("TensorRT for RTX has no matrix product in f32 for Turing")
        if (plan := self._built(artifact, kind)) is None:
            order = ["--engine", flavour.value, "--precision", kind.precision.value, "--target", "this"]
            if kind.precision is Precision.INT8:
                order += ["--calibration", str(PHOTOS)]
            self._topfive("export", model, *order, "--weights", self._weights(model), "--batch", f"1,8,{MAX_BATCH}")
            plan = self._built(load(self.root, model), kind)
        assert plan is not None, "the export said that it built an engine, and there is none"
        return plan

    def open(
        self, model: str, kind: Kind, *, slots: int = 1, max_batch: int = MAX_BATCH, launch: Launch = Launch.GRAPH
    ) -> Engine:
        """An engine of that kind on the card."""
        if kind.runtime is Runtime.ONNXRUNTIME_CUDA:
            if not has_cuda():
                pytest.skip("this ONNX Runtime has no CUDA: pip install '.[gpu]' in the place of '.[cpu]'")
            return OnnxRuntimeEngine(
                self.artifact(model), kind.runtime, slots=slots, threads=1, max_batch=max_batch, card=self.card
            )
        return TensorRtEngine(
            self.plan(model, kind),
            self.artifact(model),
            card=self.card,
            slots=slots,
            max_batch=max_batch,
            cache=self.root / "cache",
            launch=launch,
        )

    def torch(self, model: str) -> Engine:
        """PyTorch on the card."""
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        return TorchEngine(self.artifact(model), threads=1, max_batch=MAX_BATCH, card=self.card)

    @staticmethod
    def _weights(model: str) -> str:
        return "pretrained" if model == TRAINED else "untrained"

    def _built(self, artifact: Artifact, kind: Kind) -> EnginePlan | None:
        plans, _ = read_plans(artifact.folder)
        wanted = (kind.runtime.value, kind.precision.value)
        for plan in plans:
            record = plan.record
            if (record.flavour.value, record.precision) == wanted and str(self.card.target) in record.targets:
                return plan
        return None

    def _topfive(self, *arguments: str) -> None:
        command = [str(TOPFIVE), *arguments, "--artifacts", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"


@pytest.fixture(scope="session")
def workshop(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where the engines of this session come from."""
    return Workshop(tmp_path_factory.mktemp("gpu"), card)


@pytest.fixture
def opened(workshop: Workshop) -> Iterator[Callable[..., Engine]]:
    """Opens engines that are closed at the end of the test."""
    with ExitStack() as stack:

        def one(model: str, kind: Kind, *, slots: int = 1, launch: Launch = Launch.GRAPH) -> Engine:
            engine = workshop.open(model, kind, slots=slots, launch=launch)
            stack.callback(engine.close)
            return engine

        yield one
