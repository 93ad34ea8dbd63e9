"""The MLServer peer: two worker processes with adaptive batching. Requests: V2 protocol, base64 photo in JSON."""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Network, sample


class MlServerRuntime(MLModel):
    """A model of MLServer whose one input is a tensor of encoded photos."""

    async def load(self) -> bool:
        self.network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        photos = [base64.b64decode(one) for one in payload.inputs[0].data.root]
        rows = self.network.answers([sample(one) for one in photos])
        texts = [json.dumps(row) for row in rows]
        output = ResponseOutput(name="answer", shape=[len(texts), 1], datatype="BYTES", data=texts)
        return InferenceResponse(model_name=self.name, outputs=[output])


if __name__ == "__main__":
    port = int(os.environ["BENCH_PORT"])
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": WORKERS,
    }
    model = {
        "name": "model",
        "implementation": "benchmarks.peers.mlserver_runtime.MlServerRuntime",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": WAIT_MS / 1000,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("mlserver")), "start", folder]
        sys.exit(subprocess.run(command, check=False).returncode)
