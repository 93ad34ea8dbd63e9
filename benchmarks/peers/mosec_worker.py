"""mosec: an HTTP server in Rust, raw bodies, two processes that batch."""

import os
import sys

import mosec

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Answer, Network, sample


class MosecWorker(mosec.Worker):
    """Decodes and runs a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def deserialize(self, data: bytes) -> bytes:
        return data  # `forward` decodes it, so that both processes decode

    def forward(self, data: list[bytes]) -> list[Answer]:
        return self.network.answers([sample(one) for one in data])


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ["BENCH_PORT"], "--timeout", "30000"]
    server = mosec.Server()
    server.append_worker(MosecWorker, num=WORKERS, max_batch_size=MAX_BATCH, max_wait_time=WAIT_MS)
    server.run()
