"""API keys: which clients may call what, how many requests at once and how many a second.

The file has the SHA-256 of each key, so that a copy of the file opens nothing. A key is random and long, so a slow
hash or a salt would add nothing.
"""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.common.clock import Clock
from service.common.errors import Overloaded, PermissionDenied, TopfiveError, Unauthenticated
from service.common.metrics import UNKNOWN, Metrics
from service.common.reloaded import Reloaded

_RETRY_S = 1.0


class Scope(StrEnum):
    """What a key permits: inference is to classify and compare images, management is everything else."""

    INFERENCE = "inference"
    MANAGEMENT = "management"


class ApiKey(BaseModel):
    """An entry of the file. A limit of 0 means no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    max_in_flight: Annotated[int, Field(ge=0)] = 0
    requests_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: Annotated[tuple[ApiKey, ...], Field(min_length=1)]


@dataclass(slots=True)
class Client:
    """A client and its use of its key. `tokens` is the level of a token bucket; a request takes one token."""

    key: ApiKey
    clock: Clock
    in_flight: int = 0
    tokens: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.filled_at = max(1.0, self.key.requests_per_s), self.clock.now()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request until the block ends. Raises Overloaded if the key is at a limit."""
        key = self.key
        if key.max_in_flight and self.in_flight >= key.max_in_flight:
            raise Overloaded(_RETRY_S, f"the key {key.name} has {key.max_in_flight} requests in flight, its limit")
        if key.requests_per_s:
            now = self.clock.now()
            filled = self.tokens + (now - self.filled_at) * key.requests_per_s
            self.tokens, self.filled_at = min(max(1.0, key.requests_per_s), filled), now
            if self.tokens < 1:
                wait_s = (1 - self.tokens) / key.requests_per_s
                raise Overloaded(wait_s, f"the key {key.name} is past its {key.requests_per_s:g} requests a second")
            self.tokens -= 1
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


current_client: ContextVar[Client | None] = ContextVar("current_client", default=None)
"""The client whose call the current task answers, None if no keys are configured."""


def admitted() -> AbstractContextManager[None]:
    """Count a request of the current client until the block ends. Raises Overloaded as `Client.admitted` does."""
    client = current_client.get()
    return nullcontext() if client is None else client.admitted()


class ApiKeys:
    """The keys of the file at `path`, read again when it changes. Raises OSError if the first read fails."""

    def __init__(self, path: Path, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._clients: dict[str, Client] = {}  # by name, so that a client keeps its count when the file changes
        self._keys = Reloaded([path], lambda: _read_keys(path), clock.now)

    def client(self, headers: Mapping[str, Any], scope: Scope) -> Client:
        """The client whose key is in the headers or metadata. Raises and counts Unauthenticated or PermissionDenied."""
        try:
            key = self._find(headers)
            if scope not in key.scopes:
                raise PermissionDenied(f"the key {key.name} does not have the scope {scope}")
        except TopfiveError as error:
            self._metrics.answered(UNKNOWN, error.code)
            raise
        client = self._clients.setdefault(key.name, Client(key, self._clock))
        client.key = key
        return client

    def _find(self, headers: Mapping[str, Any]) -> ApiKey:
        scheme, _, token = str(headers.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer":
            token = str(headers.get("x-api-key", ""))
        digest = sha256(token.strip().encode()).hexdigest()
        found = [key for key in self._keys.value if token and compare_digest(key.sha256, digest)]
        if not found:
            reason = "the API key is not known" if token else "there is no API key"
            raise Unauthenticated(f"{reason}; send it as the header Authorization: Bearer KEY, or X-Api-Key: KEY")
        return found[0]


def _read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the file. Raises OSError that says what is wrong with it, and holds nothing of a key."""
    try:
        keys = _KeysFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).key
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise OSError(f"the API keys in {path} cannot be used: {reasons}") from None
    except (ValueError, RecursionError) as error:
        raise OSError(f"the API keys in {path} cannot be used: {error}") from None
    for what in ("name", "sha256"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise OSError(f"the API keys in {path} cannot be used: two have the same {what}")
    return keys
