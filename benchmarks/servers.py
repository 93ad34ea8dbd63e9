"""The servers that are measured: this one and its peers, how each is started and asked."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "benchmarks" / ".envs"

_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"


class Body(StrEnum):
    """How a photo is packed into a request; V2 is the Open Inference Protocol."""

    MULTIPART = "multipart"
    RAW = "raw"
    V2_JSON = "V2, base64 in JSON"
    V2_BINARY = "V2, binary tensor"


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """How a server is started and asked. `program` runs `copies` times; load is spread evenly over the copies.

    Each copy has ten ports of its own: in the arguments and in the values of `environ`, `{port}` is the first one and
    `{port+1}` the next one. `settings` describes the server in the report.
    """

    name: str
    program: tuple[str, ...] = ()
    settings: str = ""
    path: str = "/predict"
    body: Body = Body.MULTIPART
    copies: int = 1
    environ: Mapping[str, str] = field(default_factory=dict)


def ours(name: str, models: str, artifacts: Path, *options: str) -> ServerSpec:
    """`topfive serve` with the models, whose names are joined by commas, and with further options."""
    topfive = str(Path(sys.executable).with_name("topfive"))
    program = (topfive, "serve", "--models", models, "--artifacts", str(artifacts.resolve()), *options)
    return ServerSpec(
        name,
        (*program, "--port", "{port}", "--grpc-port", "{port+1}", "--log-level", "warning"),
        " ".join(options) or "default settings",
        f"/predict?model={models.partition(',')[0]}",
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server. The first of `arguments` is a program of its environment, which `make bench-peers` makes."""

    name: str
    arguments: tuple[str, ...]
    spec: ServerSpec

    def installed(self, graph: Path) -> ServerSpec:
        """The server as it runs from its environment, with the ONNX file `graph`."""
        program, *arguments = self.arguments
        return replace(
            self.spec,
            program=(str(ENVIRONMENTS / self.name / "bin" / program), *arguments),
            environ={**self.spec.environ, "BENCH_MODEL": str(graph), "BENCH_PORT": "{port}"},
        )

    @property
    def requirements(self) -> Path:
        """The packages that were chosen for it, with their versions."""
        return _REQUIREMENTS / f"{self.name}.txt"


def _module(module: str, spec: ServerSpec) -> Peer:
    return Peer(module.partition("_")[0], ("python", "-m", f"benchmarks.peers.{module}"), spec)


EXPERT = "an expert's FastAPI"
"""The peer with the runtime and the precision of this server."""

NAIVE = "naive FastAPI"

_AT = ("--host", "127.0.0.1", "--port", "{port}")
_V2 = "/v2/models/model/infer"
_BATCHES = "2 workers, batches up to 8"
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

PEERS = (
    Peer(
        "naive",
        ("uvicorn", "benchmarks.peers.naive:app", *_AT, "--no-access-log"),
        ServerSpec(NAIVE, settings="2 processes of uvicorn, no batching", copies=2),
    ),
    Peer(
        "expert",
        ("uvicorn", "benchmarks.peers.expert:app", *_AT, "--no-access-log"),
        ServerSpec(EXPERT, settings="FastAPI, libjpeg-turbo, OpenVINO bf16 with 2 streams; 4 threads, no batching"),
    ),
    _module("litserve_api", ServerSpec("LitServe", settings=f"{_BATCHES} in 3 ms")),
    Peer(
        "bentoml",
        ("bentoml", "serve", "benchmarks.peers.bentoml_service:BentoClassifier", *_AT),
        ServerSpec("BentoML", settings="2 processes, batches up to 8", copies=2),
    ),
    _module("mosec_worker", ServerSpec("mosec", settings=f"{_BATCHES} in 3 ms", path="/inference", body=Body.RAW)),
    _module("ray_deployment", ServerSpec("Ray Serve", settings="2 replicas, batches up to 8 in 3 ms", environ=_RAY)),
    _module("mlserver_runtime", ServerSpec("MLServer", settings=f"{_BATCHES} in 3 ms", path=_V2, body=Body.V2_JSON)),
    _module("pytriton_server", ServerSpec("PyTriton", settings=f"{_BATCHES} in 3 ms", path=_V2, body=Body.V2_BINARY)),
)
"""All peers, in the order in which even rounds measure them."""
