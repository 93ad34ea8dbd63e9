"""Every setting of the server, once: name, default, meaning.

The CLI makes an option and an environment variable TOPFIVE_* of each.
"""

from contextlib import suppress
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.artifact.artifact import PACKAGED, exported_names
from models.artifact.files import expand_home
from models.artifact.tuning import MAX_BATCH
from service.common.logs import LogFormat
from service.common.types import (
    CACHE,
    ENSEMBLE_PREFIX,
    Decode,
    ImageLimits,
    ModelControl,
    Precision,
    RestAccess,
    Runtime,
)


class LogLevel(StrEnum):
    """Log levels, least severe first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Settings(BaseModel):
    """Validated settings; times in seconds, sizes in bytes or pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    models: Annotated[
        tuple[str, ...],
        Field(
            description="Models to load at start; the first trained one is the default; without it googlenet if that "
            "is exported, else squeezenet1_1, which comes with topfive"
        ),
    ] = ()
    model: Annotated[
        tuple[str, ...],
        Field(description="A model to load at start and the folder that it lies in, NAME=FOLDER; may be repeated"),
    ] = ()
    artifacts: Annotated[Path, Field(description="Folder of exported models")] = Path("artifacts")
    model_control: Annotated[
        ModelControl,
        Field(description="What loads models while serving: explicit: calls that load and unload; watch: new versions"),
    ] = ModelControl.NONE
    cache: Annotated[
        Path, Field(description="Folder for measurements of this machine, which may be deleted at any time")
    ] = CACHE
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port of REST; 0 takes a free one")] = 8000
    grpc_port: Annotated[int, Field(ge=0, le=65535, description="Port of gRPC; 0 takes a free one")] = 8001
    grpc_max_connection_idle_s: Annotated[
        float, Field(gt=0, le=1e6, description="Time without a call after which a gRPC connection is closed")
    ] = 120.0
    grpc_max_connection_age_s: Annotated[
        float, Field(ge=0, le=1e6, description="Age at which a gRPC connection is closed; 0 for none")
    ] = 0.0
    root_path: Annotated[
        str,
        Field(pattern=r"^(/[\w.~-]+)*$", description="Path prefix that a proxy publishes REST under, such as /vision"),
    ] = ""
    forwarded_allow_ips: Annotated[
        str, Field(description="Addresses or networks of proxies whose X-Forwarded-* headers count, a,b; * for all")
    ] = ""
    allowed_hosts: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(\*|(\*\.)?[^*]+)$")], ...],
        Field(description="Host names that requests may ask for, a,*.b; else localhost where only it is listened on"),
    ] = ()
    cors_origin: Annotated[
        tuple[str, ...], Field(description="Origin of web pages that may send requests; may be repeated; * for all")
    ] = ()
    api_keys_file: Annotated[Path | None, Field(description="TOML file of API keys; without it everybody may call")] = (
        None
    )
    public_metrics: Annotated[bool, Field(description="Whether GET /metrics needs no API key")] = False
    torchserve_compatible: Annotated[
        bool, Field(description="Whether REST answers TorchServe's POST /predictions/NAME and GET /ping as well")
    ] = False
    tls_cert: Annotated[
        Path | None,
        Field(description="PEM file of the server's certificate and its chain, for HTTPS and gRPC over TLS"),
    ] = None
    tls_key: Annotated[Path | None, Field(description="PEM file of the key of --tls-cert")] = None
    tls_client_ca: Annotated[
        Path | None, Field(description="PEM file of the authority whose clients alone may connect (mutual TLS)")
    ] = None
    runtime: Annotated[Runtime, Field(description="Runtime; auto takes the best that fits this machine")] = Runtime.AUTO
    precision: Annotated[
        Precision, Field(description="Precision; auto lowers it only if measured parity allows it")
    ] = Precision.AUTO
    cpus: Annotated[int, Field(ge=0, description="CPUs to use; 0 takes what affinity and cgroup quota give")] = 0
    max_batch: Annotated[
        int,
        Field(ge=0, le=MAX_BATCH, description="Largest batch; 0 takes what was tuned, or a default for the device"),
    ] = 0
    memory_budget_mib: Annotated[
        int, Field(ge=0, description="Memory limit of models per device, in MiB; 0: 90% on a GPU, none on a CPU")
    ] = 0
    capacity: Annotated[
        int, Field(ge=1, description="Images per model that may be in flight; further ones get 429")
    ] = 256
    max_queue_s: Annotated[
        float, Field(ge=0, description="Longest queue of a model in seconds; further images get 429; 0 for none")
    ] = 2.0
    slo_ms: Annotated[
        float,
        Field(ge=0, description="Bound on 99th percentile of latency; requests that would miss it get 429; 0 for none"),
    ] = 0.0
    max_image_bytes: Annotated[int, Field(ge=1, le=64 << 20, description="Largest image file")] = 32 << 20
    max_image_pixels: Annotated[int, Field(ge=1, description="Largest image, width times height")] = 64_000_000
    decode: Annotated[
        Decode,
        Field(description="Large JPEGs: exact decodes all pixels, auto fewer as answers allow, fast still fewer"),
    ] = Decode.AUTO
    max_upload_bytes: Annotated[
        int, Field(ge=1, description="Bytes of request bodies in memory at once; further ones get 429")
    ] = 1 << 30
    keep_alive_s: Annotated[
        float, Field(gt=0, le=1e6, description="Time after an answer in which a REST connection may be idle")
    ] = 75.0  # longer than the idle time of common load balancers, so that they close first
    timeout_s: Annotated[float, Field(gt=0, description="Longest time for one answer; callers may ask for less")] = 30.0
    pre_stop_s: Annotated[
        float,
        Field(
            ge=0,
            description="Time after SIGTERM in which the server is unready and still takes requests, "
            "so that load balancers notice",
        ),
    ] = 0.0
    drain_s: Annotated[float, Field(ge=0, description="Longest time for accepted work after SIGTERM or Ctrl-C")] = 20.0
    recover_s: Annotated[float, Field(gt=0, description="Time between attempts to recover a failing model")] = 5.0
    log_level: Annotated[LogLevel, Field(description="Least severe messages to log")] = LogLevel.INFO
    access_log: Annotated[bool, Field(description="Whether each good answer has a line in the log")] = False
    log_format: Annotated[LogFormat, Field(description="Lines of text, or a JSON object in each line")] = LogFormat.TEXT

    @model_validator(mode="before")
    @classmethod
    def _choose_models(cls, values: Any) -> Any:
        """Choose the model if none is given. Those of `model` are before those of `models`."""
        if not isinstance(values, dict):
            return values
        if named := [one.partition("=")[0] for one in _names(values.get("model")) or ()]:
            return {**values, "models": (*named, *(_names(values.get("models")) or ()))}
        if values.get("models", ()) != ():
            return values
        exported = exported_names(Path(values.get("artifacts", cls.model_fields["artifacts"].default)))
        return {**values, "models": ("googlenet",) if "googlenet" in exported else tuple(exported_names(PACKAGED))}

    @field_validator("models", "model", "allowed_hosts", "cors_origin", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Accept `a,b` as well as a sequence, of which each may be so; a name given twice counts once."""
        names = _names(value)
        return value if names is None else names

    @field_validator("models")
    @classmethod
    def _check_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one model")
        if made := [name for name in names if name.startswith(ENSEMBLE_PREFIX)]:
            raise ValueError(f"{made[0]} is made of models at a request; name its members instead")
        if paths := [name for name in names if "/" in name or name.startswith(".")]:
            raise ValueError(f"{paths[0]} is no name of a model; a folder comes after it: --model NAME=FOLDER")
        return names

    @property
    def model_folders(self) -> dict[str, Path]:
        """The folder of each model of `model` that names one."""
        pairs = (one.partition("=") for one in self.model)
        return {name: expand_home(Path(folder)) for name, _, folder in pairs if folder}

    @property
    def rest_access(self) -> RestAccess:
        """The access that these settings give. `allowed_hosts` are all if none is named.

        But a server that listens to this machine alone then has only its names. A web page cannot reach it by a name
        of its own that it resolves to 127.0.0.1 (DNS rebinding).
        """
        default: tuple[str, ...] = ("*",)
        with suppress(ValueError):
            if self.host == "localhost" or ip_address(self.host).is_loopback:
                default = ("localhost", "127.0.0.1", "[::1]", self.host)
        return RestAccess(
            self.root_path,
            self.forwarded_allow_ips,
            self.allowed_hosts or default,
            self.cors_origin,
            self.public_metrics,
            self.torchserve_compatible,
        )

    @property
    def cache_folder(self) -> Path:
        """The folder of `cache`, with `~` expanded."""
        return expand_home(self.cache)

    @property
    def limits(self) -> ImageLimits:
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)


def _names(value: object) -> tuple[str, ...] | None:
    """The names in `a,b` or in a sequence of such, each once. None if it is neither."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(dict.fromkeys(name.strip() for name in ",".join(names).split(",") if name.strip()))
