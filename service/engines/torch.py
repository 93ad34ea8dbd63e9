"""Eager PyTorch on the CPU: the reference that the other engines are compared with. Needs the `export` extra."""

import torch

from models.artifact import WEIGHTS, Artifact
from models.build import Served, build
from models.catalog import CATALOG
from models.weights import WeightsError, load_state, read_state_dict
from service.engines.base import CPU, EngineUnavailableError, as_batch, held_bytes
from service.types import EngineInfo, Probabilities, Rows, Runtime


class TorchEngine:
    """The catalog's own network with the artifact's weights, one batch at a time."""

    def __init__(self, artifact: Artifact, *, threads: int, max_batch: int) -> None:
        self.slots = 1
        self.max_batch = max_batch
        self.device = CPU
        name, weights = artifact.manifest.name, artifact.folder / WEIGHTS
        architecture = CATALOG.get(name)
        if architecture is None or not weights.is_file():
            raise EngineUnavailableError(f"{name} has no {WEIGHTS} for a catalog network; use another --runtime")
        network = build(architecture)
        try:
            load_state(network, architecture, read_state_dict(weights), what=str(weights))
        except WeightsError as error:
            raise EngineUnavailableError(str(error)) from error
        self.memory_bytes = held_bytes(weights.stat().st_size)
        torch.set_num_threads(threads)
        self._served = Served(network, artifact.manifest.input).eval()

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples."""
        with torch.inference_mode():
            result: Probabilities = self._served(torch.from_numpy(as_batch(rows))).numpy()
        return result

    def describe(self) -> EngineInfo:
        """What really runs."""
        return EngineInfo(Runtime.TORCH, torch.__version__, self.device, "f32")

    def close(self) -> None:
        """Release the network."""
        del self._served
