"""Eager PyTorch, the reference for parity, on the CPU or a GPU. Needs the extra `export`."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from models.artifact.artifact import WEIGHTS, Artifact
from models.build import ServedNetwork, build
from models.catalog import CATALOG
from models.weights.weights import WeightsError, load_state, read_state_dict
from service.common.gpus import Card
from service.common.types import EngineInfo, Probabilities, Rows, Runtime
from service.engines.base import CPU, Engine, EngineUnavailableError, held_bytes


class TorchEngine(Engine):
    """The catalog's network with the artifact's weights. Runs one batch at a time, in f32 without TF32."""

    def __init__(self, artifact: Artifact, *, threads: int, max_batch: int, card: Card | None = None) -> None:
        self.slots = 1
        self.max_batch = max_batch
        self.device = f"cuda:{card.index}" if card else CPU
        name, weights = artifact.manifest.name, artifact.folder / WEIGHTS
        architecture = CATALOG.get(name)
        if architecture is None or not weights.is_file():
            raise EngineUnavailableError(f"{name} has no {WEIGHTS} for a catalog network; use another --runtime")
        network = build(architecture)
        try:
            load_state(network, architecture, read_state_dict(weights), what=str(weights))
        except WeightsError as error:
            raise EngineUnavailableError(str(error)) from error
        self.input_size = artifact.manifest.input.crop
        self.memory_bytes = held_bytes(weights.stat().st_size, max_batch, self.input_size)
        torch.set_num_threads(threads)
        self._served = ServedNetwork(network, artifact.manifest.input).eval().to(self.device)

    def run(self, rows: Rows) -> Probabilities:
        with torch.inference_mode(), self._exact():
            result: Probabilities = self._served(torch.from_numpy(np.asarray(rows)).to(self.device)).cpu().numpy()
        return result

    def _exact(self) -> AbstractContextManager[None]:
        """TF32 off: on GPUs since Ampere convolutions would round their inputs to 10 bits."""
        if self.device == CPU:
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def describe(self) -> EngineInfo:
        return EngineInfo(Runtime.TORCH, torch.__version__, self.device, "f32")

    def close(self) -> None:
        del self._served
