"""LitServe: one HTTP process and two workers that batch."""

import litserve
from starlette.requests import Request

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Answer, Network, Pixels, environment, sample


class Api(litserve.LitAPI):
    """Decodes each request and runs batches."""

    def setup(self, device: str) -> None:
        """Loads the model in the worker."""
        del device
        self.network = Network()

    def decode_request(self, request: Request) -> Pixels:
        """The field `image` of the form."""
        return sample(request["image"].file.read())

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """The session stacks them itself."""
        return list(inputs)

    def predict(self, inputs: list[Pixels]) -> list[Answer]:
        """One run for the whole batch."""
        return self.network.answers(inputs)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One answer for each request."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """LitServe writes it as JSON."""
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1",
        port=int(environment("BENCH_PORT")),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
