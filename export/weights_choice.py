"""Which weights an export takes. It loads no torch, so that an export with nothing to do ends at once."""

from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact.artifact import WeightRecord, WeightSource, sha256
from models.catalog import Architecture


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """The value of `--weights`: a source, None for auto; the file; and the mirror to download from."""

    source: WeightSource | None
    file: Path | None = None
    mirror: str | None = None

    @classmethod
    def parse(cls, text: str, mirror: str | None) -> "WeightsChoice":
        """From `auto`, `pretrained`, `untrained` or a path."""
        if text == "auto":
            return cls(None, mirror=mirror)
        if text in (WeightSource.PRETRAINED, WeightSource.UNTRAINED):
            return cls(WeightSource(text), mirror=mirror)
        return cls(WeightSource.FILE, file=Path(text), mirror=mirror)

    def without_fallback(self) -> "WeightsChoice":
        """The same choice, except that auto becomes pretrained."""
        return replace(self, source=self.source or WeightSource.PRETRAINED)

    def satisfied_by(self, present: WeightRecord, architecture: Architecture) -> bool:
        """Whether an artifact with these weights is already what the user wants."""
        if self.source is None:
            return present.source is not WeightSource.UNTRAINED or architecture.default_weights is None
        if self.file is not None:
            return self.file.is_file() and present.sha256 == sha256(self.file)
        return present.source is self.source
