"""Ray Serve: a proxy, a controller and two replicas that batch."""

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Answer, Network, Pixels, sample


class RayClassifier:
    """Opens its model once in each replica."""

    def __init__(self) -> None:
        self.network = Network()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def run(self, samples: list[Pixels]) -> list[Answer]:
        return self.network.answers(samples)

    async def __call__(self, request: Request) -> Answer:
        form = await request.form()
        file = form["image"]
        assert not isinstance(file, str)
        answer: Answer = await self.run(sample(await file.read()))
        return answer


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    deployed: Any = serve.deployment(num_replicas=WORKERS, max_ongoing_requests=32)(RayClassifier)
    serve.run(deployed.bind(), route_prefix="/predict")
    signal.pause()
