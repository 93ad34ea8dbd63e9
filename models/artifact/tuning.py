"""Records of `topfive tune`: which slots, threads and batch sizes are best for an artifact on one kind of machine.

    ARTIFACTS/NAME/VERSION/tuned/KEY.json     a record for each kind of machine
    CACHE/tuned/GRAPH-KEY.json                the same, if the artifact's folder cannot be written

This module names, writes and reads records. The service decides which part of one it uses.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.artifact.files import write_atomically

TUNED = "tuned"
METHOD = 1
"""The version of the measuring method. A new version makes older records invalid."""

MAX_BATCH = 1024
"""The largest batch size of a record: more than any engine needs, and few enough rows to allocate memory for."""

_DIGITS = 16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Conditions(_Record):
    """The conditions that a record is valid for.

    `cpus` is the number of CPUs to use. `runtime` and `precision` are what the tuning was restricted to, `auto` if
    it compared all: the best of one runtime says nothing about the others.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cpus: int
    measuring: int = METHOD
    runtime: str = "auto"
    precision: str = "auto"

    @property
    def key(self) -> str:
        """A short hash of all fields, for the name of the file."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:_DIGITS]


class Trial(_Record):
    """One layout of one engine, measured while other threads decode images.

    `run_ms` is the median time of a batch in the engine, `cpu_ms` the CPU time of one image with its decoding.
    """

    runtime: str
    runtime_version: str
    precision: str
    slots: int = Field(ge=1)
    threads: int = Field(ge=1)
    max_batch: int = Field(ge=1, le=MAX_BATCH)
    images_per_s: float
    run_ms: float
    cpu_ms: float


class TuningRecord(_Record):
    """The result of one `topfive tune`. `trials` are sorted, the best under the latency bound first.

    `graph_sha256` belongs to the artifact's model.onnx. `date` is UTC in ISO 8601, to the second. No trial uses more
    threads than there are CPUs.
    """

    conditions: Conditions
    graph_sha256: str
    date: str
    seconds: float
    max_latency_ms: float
    trials: tuple[Trial, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _within_the_cpus(self) -> Self:
        if any(trial.slots * trial.threads > self.conditions.cpus for trial in self.trials):
            raise ValueError("a trial has more threads than there are CPUs")
        return self


@dataclass(frozen=True, slots=True)
class TuningFiles:
    """The places of one artifact's records: its own folder, and the cache if that cannot be written."""

    artifact: Path
    cache: Path
    graph_sha256: str

    def files(self, conditions: Conditions) -> tuple[Path, Path]:
        """The file in the artifact's folder and the file in the cache."""
        own = self.artifact / TUNED / f"{conditions.key}.json"
        return own, self.cache / TUNED / f"{self.graph_sha256[:_DIGITS]}-{conditions.key}.json"


def write_tuning(place: TuningFiles, record: TuningRecord) -> Path:
    """Write the record, in place of an older one for the same conditions, and return its file.

    An interruption leaves the old file. Raises OSError if neither folder can be written.
    """
    content = record.model_dump_json(indent=2).encode() + b"\n"
    own, spare = place.files(record.conditions)
    try:
        if not own.parent.exists():
            own.parent.mkdir(exist_ok=True)
            own.parent.chmod(0o755)  # the server may run as another user than the tuning
        write_atomically(own, content)
    except OSError:
        spare.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(spare, content)
        return spare
    return own


def read_tuning(place: TuningFiles, conditions: Conditions) -> tuple[TuningRecord | None, list[str]]:
    """The newest record for these conditions and this graph, and a message for each damaged file."""
    found: list[TuningRecord] = []
    damage: list[str] = []
    for path in place.files(conditions):
        try:
            record = TuningRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a record that this version reads"
            damage.append(f"{path} cannot be read ({reason}); run topfive tune again")
            continue
        if (record.conditions, record.graph_sha256) == (conditions, place.graph_sha256):
            found.append(record)
    return max(found, key=lambda one: one.date, default=None), damage
