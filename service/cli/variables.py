"""The environment variables that options read. They are a list, because to ask every command would import them all."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

_PREFIX = "TOPFIVE_"
_ALIKE = 0.9  # TOPFIVE_PROT and TOPFIVE_PORT; variables of the compose file are less alike

_NAMES = (
    "ACCESS_LOG", "ALLOWED_HOSTS", "API_KEY", "API_KEYS_FILE", "ARTIFACTS", "CACHE", "CAPACITY", "CORS_ORIGIN",
    "CPUS", "CROPS", "DECODE", "DRAIN_S", "ENGINE", "ENGINE_BATCH", "ENGINE_CALIBRATION", "ENGINE_PRECISION",
    "ENGINE_SAMPLES", "ENGINE_TARGET", "EVALUATION", "FORWARDED_ALLOW_IPS", "GRPC_MAX_CONNECTION_AGE_S",
    "GRPC_MAX_CONNECTION_IDLE_S", "GRPC_PORT", "HOST", "INFERENCE", "JSON", "KEEP_ALIVE_S", "LOG_FORMAT",
    "LOG_LEVEL", "MAX_BATCH", "MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS", "MAX_LATENCY_MS", "MAX_QUEUE_S",
    "MAX_UPLOAD_BYTES", "MEMORY_BUDGET_MIB", "MISSING", "MODEL", "MODELS", "MODEL_CONTROL", "OVERWRITE", "PORT",
    "PRECISION", "PRE_STOP_S", "PUBLIC_METRICS", "RECOVER_S", "REPLICA_API_KEY_FILE", "REPLICA_CA", "REPLICA_CERT",
    "REPLICA_KEY", "RESULTS", "ROOT_PATH", "RUNTIME", "SECONDS", "SERVER", "SLO_MS", "STAGES", "TIMEOUT_S",
    "TLS_CERT", "TLS_CLIENT_CA", "TLS_KEY", "TOP_K", "TORCHSERVE_COMPATIBLE", "VERBOSE", "WEIGHTS",
    "WEIGHTS_MIRROR",
)  # fmt: skip
VARIABLES = frozenset(f"{_PREFIX}{name}" for name in _NAMES)


def misspelt(environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each variable that nothing reads but that is almost one of VARIABLES, and that one."""
    for name in environment:
        if name.startswith(_PREFIX) and name not in VARIABLES:
            for nearest in get_close_matches(name, VARIABLES, 1, _ALIKE):
                yield name, nearest
