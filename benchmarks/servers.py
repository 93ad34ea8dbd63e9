"""The servers that are measured: this one and its peers, how each is installed, started and asked."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "benchmarks" / ".envs"

_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"
_STAMP = ".requirements"
_INSTALL_TIMEOUT_S = 1800


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
    """Another server. The first of `arguments` is a program of its environment, into which it is installed."""

    name: str
    arguments: tuple[str, ...]
    spec: ServerSpec
    python: str = sys.executable

    def installed(self, environments: Path, graph: Path) -> ServerSpec:
        """The server as it runs from its environment, with the ONNX file `graph`."""
        program, *arguments = self.arguments
        return replace(
            self.spec,
            program=(str(environments / self.name / "bin" / program), *arguments),
            environ={**self.spec.environ, "BENCH_MODEL": str(graph), "BENCH_PORT": "{port}"},
        )

    @property
    def requirements(self) -> Path:
        """The packages that were chosen for it, with their versions."""
        return _REQUIREMENTS / f"{self.name}.txt"

    @property
    def lock(self) -> Path:
        """These packages and all that they depend on, with their versions."""
        return _REQUIREMENTS / f"{self.name}.lock"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes() + self.lock.read_bytes()).hexdigest()


def _module(module: str, spec: ServerSpec, python: str = sys.executable) -> Peer:
    return Peer(module.partition("_")[0], ("python", "-m", f"benchmarks.peers.{module}"), spec, python)


_AT = ("--host", "127.0.0.1", "--port", "{port}")
_V2 = "/v2/models/model/infer"
_BATCHES = "2 workers, batches up to 8"
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

PEERS = (
    Peer(
        "naive",
        ("uvicorn", "benchmarks.peers.naive:app", *_AT, "--no-access-log"),
        ServerSpec("naive FastAPI", settings="2 processes of uvicorn, no batching", copies=2),
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
    _module(
        "pytriton_server",
        ServerSpec("PyTriton", settings=f"{_BATCHES} in 3 ms", path=_V2, body=Body.V2_BINARY),
        os.environ.get("TOPFIVE_BENCH_PYTRITON_PYTHON", "/usr/bin/python3"),  # its stub is built for a distribution's
    ),
)
"""All peers, in the order in which even rounds measure them."""


def install(peers: Iterable[Peer], environments: Path, tell: Callable[[str], None]) -> dict[str, str]:
    """Install each peer into an environment of its own; return the reasons of those that failed, by their names."""
    failed: dict[str, str] = {}
    for peer in peers:
        if is_installed(peer, environments):
            continue
        tell(f"installs {peer.name}")
        try:
            _install(peer, environments / peer.name)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            failed[peer.name] = " ".join(output.split())[-400:]
            tell(f"{peer.name} was not installed: {failed[peer.name]}")
    return failed


def is_installed(peer: Peer, environments: Path) -> bool:
    """Whether the environment was made from the requirements as they are now."""
    stamp = environments / peer.name / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == peer.digest


def _install(peer: Peer, environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [peer.python, "-m", "venv", str(environment)],
        [*pip, "-r", str(peer.requirements), "-c", str(peer.lock)],
    ):
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_INSTALL_TIMEOUT_S)
    (environment / _STAMP).write_text(peer.digest, encoding="utf-8")
