"""What is measured: this server and the others, how each is started and asked."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "benchmarks" / ".envs"
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"


class Body(StrEnum):
    """How a photo is packed into a request."""

    MULTIPART = "multipart"
    RAW = "raw"
    V2_JSON = "V2, base64 in JSON"
    V2_BINARY = "V2, binary tensor"


@dataclass(frozen=True, slots=True)
class Subject:
    """A server. `program` is started `copies` times, each on a port of its own: `{port}`, and up to nine after it.

    Connections are spread evenly over the copies.
    """

    name: str
    program: tuple[str, ...] = ()
    settings: str = ""
    path: str = "/predict"
    body: Body = Body.MULTIPART
    form_field: str = "image"
    copies: int = 1
    environ: Mapping[str, str] = field(default_factory=dict)
    environment: Path | None = None


def topfive() -> str:
    """The command of this environment."""
    return str(Path(sys.executable).with_name("topfive"))


def ours(name: str, model: str, artifacts: Path, *options: str) -> Subject:
    """`topfive serve` with such options."""
    program = (topfive(), "serve", "--models", model, "--artifacts", str(artifacts), *options)
    return Subject(
        name,
        (*program, "--port", "{port}", "--grpc-port", "{port+1}", "--log-level", "warning"),
        " ".join(options) or "default settings",
        f"/predict?model={model}",
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server: its module in `benchmarks.peers`, or a program of its environment that runs it."""

    name: str
    arguments: tuple[str, ...]
    subject: Subject
    python: str = sys.executable

    def of(self, environments: Path) -> Subject:
        """As it runs from the folder of environments."""
        home = environments / self.name
        program, *arguments = self.arguments
        return replace(self.subject, program=(str(home / "bin" / program), *arguments), environment=home)

    @property
    def requirements(self) -> Path:
        """The packages that were chosen for it, with their versions."""
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def lock(self) -> Path:
        """These and all that they bring, with their versions."""
        return REQUIREMENTS / f"{self.name}.lock"


def _module(module: str, subject: Subject, python: str = sys.executable) -> Peer:
    return Peer(module.partition("_")[0], ("python", "-m", f"benchmarks.peers.{module}"), subject, python)


_V2 = "/v2/models/model/infer"
_BATCHES = "2 workers, batches up to 8"
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

PEERS = (
    Peer(
        "naive",
        ("uvicorn", "benchmarks.peers.naive:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log"),
        Subject("naive FastAPI", settings="2 processes of uvicorn, no batching", copies=2),
    ),
    _module("litserve_api", Subject("LitServe", settings=f"{_BATCHES} in 3 ms")),
    Peer(
        "bentoml",
        ("bentoml", "serve", "benchmarks.peers.bentoml_service:Classifier", "--host", "127.0.0.1", "--port", "{port}"),
        Subject("BentoML", settings="2 processes, batches up to 8", copies=2),
    ),
    _module("mosec_worker", Subject("mosec", settings=f"{_BATCHES} in 3 ms", path="/inference", body=Body.RAW)),
    _module(
        "ray_deployment",
        Subject("Ray Serve", settings="2 replicas, batches up to 8 in 3 ms", environ=_RAY),
    ),
    _module("mlserver_runtime", Subject("MLServer", settings=f"{_BATCHES} in 3 ms", path=_V2, body=Body.V2_JSON)),
    _module("torchserve_handler", Subject("TorchServe", settings=f"{_BATCHES} in 5 ms", path="/predictions/model")),
    _module(
        "pytriton_server",
        Subject("PyTriton", settings=f"{_BATCHES} in 3 ms", path=_V2, body=Body.V2_BINARY),
        os.environ.get("TOPFIVE_BENCH_PYTRITON_PYTHON", "/usr/bin/python3"),  # its stub is built for a distribution's
    ),
)
"""All peers, in the order in which even rounds measure them."""
