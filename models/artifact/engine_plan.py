"""TensorRT engines in an artifact: a plan, and a record of how and for which GPUs it was built.

    ARTIFACTS/NAME/VERSION/engines/
        FLAVOUR-VERSION-TARGET-PRECISION.plan   what TensorRT wrote
        FLAVOUR-VERSION-TARGET-PRECISION.json   its record; a plan without a record is ignored

This module names, writes and reads them. The service decides whether one fits its machine.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.artifact.files import locked, write_atomically

ENGINES = "engines"
_TARGET = re.compile(r"sm(\d{2,3})")


class Flavour(StrEnum):
    """The library that wrote a plan: TensorRT on the GPU itself, or TensorRT for RTX ahead of time for any GPUs."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class PlanError(Exception):
    """A plan or its record cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class ComputeCapability:
    """A compute capability of NVIDIA GPUs, written sm75 for 7.5."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> "ComputeCapability":
        if (match := _TARGET.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is no compute capability; write sm75, sm86, sm89 or sm120")
        return cls(int(match[1][:-1]), int(match[1][-1]))

    def __str__(self) -> str:
        return f"sm{self.major}{self.minor}"


class BatchProfile(BaseModel):
    """The batch sizes of a plan: it takes `smallest` to `largest` and is fastest at `best`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    smallest: int
    best: int
    largest: int


class PlanRecord(BaseModel):
    """How a plan was built.

    `card` is the name of the GPU that built it, None if none was needed. `graph_sha256` belongs to the artifact's
    model.onnx, `source_sha256` to the ONNX file that the builder read (the same network in `precision`), `sha256` to
    the plan. `calibration_images` is the number of photos that calibrated int8. `warnings` are the builder's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    flavour: Flavour
    version: str
    targets: tuple[str, ...]
    precision: str
    profile: BatchProfile
    card: str | None
    graph_sha256: str
    source_sha256: str
    sha256: str
    size_bytes: int
    build_s: float
    calibration_images: int | None = None
    warnings: tuple[str, ...] = ()
    tools: dict[str, str] = {}

    @property
    def stem(self) -> str:
        """The name of both files without their suffixes."""
        return f"{self.flavour}-{self.version}-{'+'.join(self.targets)}-{self.precision}"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """A plan in an artifact."""

    path: Path
    record: PlanRecord

    def content(self) -> bytes:
        """The bytes of the plan. Raises PlanError if they cannot be read or do not match the record."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise PlanError(f"{self.path} cannot be read ({error.strerror}); build it again") from error
        if hashlib.sha256(content).hexdigest() != self.record.sha256:
            raise PlanError(f"{self.path} differs from its record (sha256); build it again")
        return content


def read_plans(artifact: Path) -> tuple[list[EnginePlan], list[str]]:
    """The plans in that artifact folder in the order of their names, and a message for each record that is damaged."""
    plans, damage = [], []
    for path in sorted((artifact / ENGINES).glob("*.json")):
        try:
            record = PlanRecord.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a record that this version reads"
            damage.append(f"{path} cannot be read ({reason}); build that engine again")
            continue
        plans.append(EnginePlan(path.with_suffix(".plan"), record))
    return plans, damage


def write_plan(artifact: Path, content: bytes, record: PlanRecord) -> EnginePlan:
    """Write a plan, then its record, into that artifact folder; older files of the same name are replaced.

    Of two processes that write the same name at once, both files are from the later one.
    """
    folder = artifact / ENGINES
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # the server may run as another user than the export
    plan = folder / f"{record.stem}.plan"
    with locked(folder):
        write_atomically(plan, content)
        write_atomically(plan.with_suffix(".json"), record.model_dump_json(indent=2).encode() + b"\n")
    return EnginePlan(plan, record)
