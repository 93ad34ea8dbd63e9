"""LitServe: one HTTP process and two workers that batch."""

import os
from collections.abc import Sequence

import litserve
from starlette.requests import Request

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Answer, Network, Pixels, sample


class LitServeApi(litserve.LitAPI):
    """Decodes each request and runs batches."""

    def setup(self, device: str) -> None:
        del device
        self.network = Network()

    def decode_request(self, request: Request) -> Pixels:
        return sample(request["image"].file.read())

    def predict(self, inputs: Sequence[Pixels]) -> list[Answer]:
        return self.network.answers(inputs)


if __name__ == "__main__":
    api = LitServeApi(max_batch_size=MAX_BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
