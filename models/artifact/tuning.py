"""What `topfive tune` measured: how engines of an artifact are best laid out on one kind of machine.

    ARTIFACTS/NAME/VERSION/tuned/KEY.json     a record for each kind of machine that it was tuned on
    CACHE/tuned/GRAPH-KEY.json                the same, where the artifact's folder cannot be written

Here records are named, written and read; what of one is used is for the service to say.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.artifact.files import write_atomically

TUNED = "tuned"
MEASURING = 1
"""Of how it is measured: raised where figures cannot be compared with older ones, which then count for nothing."""

MAX_BATCH = 1024
"""Rows of a batch: more than any layout needs, and few enough for memory to be made for them."""

_DIGITS = 16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Conditions(_Record):
    """What a record holds for: the processor by name and instruction sets, the CPUs to use, the way of measuring.

    `runtime` and `precision` are what it was confined to, `auto` for any: the best of one says nothing of the others.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cpus: int
    measuring: int = MEASURING
    runtime: str = "auto"
    precision: str = "auto"

    @property
    def key(self) -> str:
        """A short name that differs where any of it does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:_DIGITS]


class Trial(_Record):
    """One layout of one engine, and what it did with threads that decode beside it.

    `run_ms` is the median of how long a batch ran, without any wait; `cpu_ms` the CPU time of an image with its
    decoding.
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
    """One run of `topfive tune`. `trials` are the best first under the latency bound; the first is what was chosen.

    `graph_sha256` is that of the artifact's model.onnx. `date` is UTC in ISO 8601, to the second. No trial has more
    threads in all than there are CPUs.
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
    """Where records of one artifact lie: its own folder, and the cache folder for where that cannot be written."""

    artifact: Path
    cache: Path
    graph_sha256: str

    def files(self, conditions: Conditions) -> tuple[Path, Path]:
        """The file of its own folder, which comes first, and that of the cache."""
        own = self.artifact / TUNED / f"{conditions.key}.json"
        return own, self.cache / TUNED / f"{self.graph_sha256[:_DIGITS]}-{conditions.key}.json"


def write_tuning(place: TuningFiles, record: TuningRecord) -> Path:
    """Keep it in the place of an older one for the same conditions; the file that it is in.

    An interruption leaves what was there. Raises OSError where neither folder can be written.
    """
    content = record.model_dump_json(indent=2).encode() + b"\n"
    own, spare = place.files(record.conditions)
    try:
        if not own.parent.exists():
            own.parent.mkdir(exist_ok=True)
            own.parent.chmod(0o755)  # the server may run as another user than who tunes
        write_atomically(own, content)
    except OSError:
        spare.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(spare, content)
        return spare
    return own


def read_tuning(place: TuningFiles, conditions: Conditions) -> tuple[TuningRecord | None, list[str]]:
    """The record that holds for these conditions and this graph, the newer of both; and what cannot be read."""
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
