"""Records of `topfive tune`: which slots, threads and batch sizes are best for an artifact on one kind of machine.

    ARTIFACTS/NAME/VERSION/tuned/KEY.json     a record for each kind of machine

This module names, writes and reads records. The service decides which part of one it uses.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.artifact.files import write_atomically

TUNED = "tuned"

MAX_BATCH = 1024
"""The largest batch size of a record: more than any engine needs, and few enough rows to allocate memory for."""

_DIGITS = 16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Conditions(_Record):
    """The conditions that a record is valid for. `cpus` is the number of CPUs to use."""

    cpu: str
    instruction_sets: tuple[str, ...]
    cpus: int

    @property
    def key(self) -> str:
        """A short hash of all fields, for the name of the file."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:_DIGITS]


class Trial(_Record):
    """One layout of one engine, measured while other threads decode. `run_ms` is the median time of a batch."""

    runtime: str
    runtime_version: str
    precision: str
    slots: int = Field(ge=1)
    threads: int = Field(ge=1)
    max_batch: int = Field(ge=1, le=MAX_BATCH)
    images_per_s: float
    run_ms: float


class TuningRecord(_Record):
    """The result of one `topfive tune`. `trials` are sorted, the best first. `date` is UTC, YYYY-MM-DD."""

    conditions: Conditions
    date: str
    trials: tuple[Trial, ...] = Field(min_length=1)


def tuning_file(artifact: Path, conditions: Conditions) -> Path:
    """The file of the record for these conditions in the folder of an artifact."""
    return artifact / TUNED / f"{conditions.key}.json"


def write_tuning(artifact: Path, record: TuningRecord) -> Path:
    """Write the record into the folder of the artifact, in place of an older one for the same conditions.

    An interruption leaves the old file. Raises OSError if the folder cannot be written.
    """
    path = tuning_file(artifact, record.conditions)
    if not path.parent.exists():
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o755)  # the server may run as another user than the tuning
    write_atomically(path, record.model_dump_json(indent=2).encode() + b"\n")
    return path


def read_tuning(artifact: Path, conditions: Conditions) -> TuningRecord | None:
    """The record for these conditions, None if there is none. Raises ValueError if its file cannot be read."""
    path = tuning_file(artifact, conditions)
    try:
        record = TuningRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a record that this version reads"
        raise ValueError(f"{path} cannot be read ({reason}); run topfive tune again") from error
    return record if record.conditions == conditions else None
