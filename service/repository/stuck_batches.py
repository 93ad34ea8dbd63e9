"""Batches that have not returned within `max_run_s`: model and version, engine, slot and age."""

from dataclasses import dataclass

from service.common.types import EngineInfo

LABELS = ("model", "version", "runtime", "precision", "slot")
"""The labels of a stuck batch in metrics."""


@dataclass(frozen=True, slots=True)
class StuckBatch:
    """A batch of `images` images that has not returned. `slot` counts from 0, `began_s` is a time of the clock."""

    model: str
    version: int
    engine: EngineInfo
    slot: int
    images: int
    began_s: float

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model, str(self.version), self.engine.runtime, self.engine.precision, str(self.slot)

    def age_s(self, now_s: float) -> float:
        return now_s - self.began_s

    def described(self, now_s: float) -> str:
        """Engine, slot, batch size and age, as text."""
        engine = self.engine
        return (
            f"{engine.runtime} {engine.version} in {engine.precision} on {engine.device}, slot {self.slot}, "
            f"has not returned from a batch of {self.images} for {self.age_s(now_s):.0f} s"
        )
