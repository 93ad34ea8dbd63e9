"""Batches that have not returned within their time: of which model, in which engine and slot, and for how long."""

from dataclasses import dataclass

from service.common.types import EngineInfo

LABELS = ("model", "runtime", "precision", "slot")
"""What a hanging batch is told by, in metrics."""


@dataclass(slots=True, eq=False)
class Running:
    """A batch while an engine has it; `slot` counts from 0 and is None until a thread takes it. Times are a clock's."""

    images: int
    began_s: float
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Hanging:
    """A batch of a model that has not returned."""

    model: str
    engine: EngineInfo
    batch: Running

    @property
    def labels(self) -> tuple[str, ...]:
        """The values of `LABELS`."""
        return self.model, self.engine.runtime, self.engine.precision, str(self.batch.slot)

    def lasts_s(self, now_s: float) -> float:
        """For how long it has not returned."""
        return now_s - self.batch.began_s

    def told(self, now_s: float) -> str:
        """All of it but the model, for a person."""
        engine, batch = self.engine, self.batch
        return (
            f"{engine.runtime} {engine.version} in {engine.precision} on {engine.device}, slot {batch.slot}, "
            f"has not returned from a batch of {batch.images} for {self.lasts_s(now_s):.0f} s"
        )
