"""PyTriton: Triton's server as a library, two Python models that batch, the V2 protocol with binary tensors."""

import json
import os

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Network, sample


class TritonClassifier:
    """One of the two infer functions; Triton runs each in a process."""

    def __init__(self) -> None:
        self.network: Network | None = None

    @batch
    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if self.network is None:
            self.network = Network()
        rows = self.network.answers([sample(one) for one in image[:, 0]])
        return {"answer": np.array([[json.dumps(row).encode()] for row in rows], dtype=np.object_)}


if __name__ == "__main__":
    port = int(os.environ["BENCH_PORT"])
    config = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[TritonClassifier() for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=np.bytes_, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=WAIT_MS * 1000)
            ),
        )
        triton.serve()
