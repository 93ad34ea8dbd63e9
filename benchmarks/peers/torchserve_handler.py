"""TorchServe: an HTTP server in Java, two processes that batch. As a program it packs this handler and starts it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.common import MAX_BATCH, WAIT_MS, WORKERS, Answer, Network, environment, sample


class TorchServeHandler:
    """What TorchServe calls in each worker."""

    def initialize(self, context: Any) -> None:
        del context
        self.network = Network()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Answer]:
        del context
        return self.network.answers([sample(bytes(row["image"])) for row in data])


_QUIET = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration><Appenders><Console name="out"><PatternLayout pattern="%p %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""


def main() -> int:
    """Packs the handler, then waits for the server, which writes its pid file into a folder of its own."""
    port = int(environment("BENCH_PORT"))
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        pack = [str(tools / "torch-model-archiver"), "--model-name", "model", "--version", "1.0", "--force"]
        pack += ["--handler", str(Path(__file__)), "--export-path", folder]
        subprocess.run(pack, check=True)
        model = {
            "1.0": {
                "marName": "model.mar",
                "minWorkers": WORKERS,
                "maxWorkers": WORKERS,
                "batchSize": MAX_BATCH,
                "maxBatchDelay": WAIT_MS + 2,
            }
        }
        lines = [
            f"inference_address=http://127.0.0.1:{port}",
            f"management_address=http://127.0.0.1:{port + 1}",
            f"metrics_address=http://127.0.0.1:{port + 2}",
            f"grpc_inference_port={port + 3}",
            f"grpc_management_port={port + 4}",
            "disable_token_authorization=true",
            "enable_envvars_config=false",
            f"vmargs=-Xmx1g -Djava.io.tmpdir={folder}",
            f"model_store={folder}",
            "load_models=model.mar",
            "models=" + json.dumps({"model": model}),
        ]
        config = Path(folder, "config.properties")
        config.write_text("\n".join(lines), encoding="utf-8")
        command = [str(tools / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"]
        quiet = Path(folder, "log4j2.xml")
        quiet.write_text(_QUIET, encoding="utf-8")
        command += ["--ts-config", str(config), "--model-store", folder, "--log-config", str(quiet)]
        paths = f"{tools}:{os.environ['PATH']}"
        environ = {**os.environ, "TMPDIR": folder, "PATH": paths, "LOG_LOCATION": folder, "METRICS_LOCATION": folder}
        return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
