"""Remembers failed loads for 30 s, so that models are not evicted again for a load that would fail again."""

from dataclasses import dataclass

from models.artifact.artifact import Artifact, Manifest
from service.common.clock import Clock

_REMEMBERED_S = 30.0


@dataclass(frozen=True, slots=True)
class _Failure:
    at: float
    manifest: Manifest
    reason: str


class LoadFailures:
    """The last failure of each model on each device."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[tuple[str, str], _Failure] = {}

    def note(self, device: str, artifact: Artifact, error: Exception) -> None:
        key = device, artifact.manifest.name
        self._last[key] = _Failure(self._clock.now(), artifact.manifest, str(error))

    def recent(self, device: str, artifact: Artifact) -> str | None:
        """The reason of the last failure on `device`; None after 30 s, or if the model was exported again."""
        failure = self._last.get((device, artifact.manifest.name))
        if failure is None or failure.manifest != artifact.manifest:
            return None
        left_s = failure.at + _REMEMBERED_S - self._clock.now()
        if left_s <= 0:
            return None
        return f"{failure.reason}; no model is unloaded to try again for {left_s:.0f} s"
