"""The int8 graph of an artifact for CPUs: a graph in OpenVINO's format, and a record of how it was made.

    ARTIFACTS/NAME/VERSION/int8/
        STEM.xml, STEM.bin       the graph and its weights, named by the starts of their sha256
        record.json              the record; a graph that it does not name is ignored

This module writes and reads them. The service decides whether it uses the graph.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.artifact.artifact import GRAPH, Artifact, ParityReport, sha256
from models.artifact.files import locked, write_atomically
from models.artifact.tuning import Conditions

INT8 = "int8"
_RECORD = "record.json"
_DIGITS = 8


class QuantizedGraphError(Exception):
    """The int8 graph or its record cannot be read; the message names the file."""


class PrecisionSpeed(BaseModel):
    """Images per second of the same network in one precision."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    precision: str
    images_per_s: float


class QuantizationRecord(BaseModel):
    """How the int8 graph was made, and what it gives.

    `photos` calibrated it; `photos_sha256` is a fingerprint of their content. `floating_point` names the layers that
    were not quantized. `accuracy_control`: NNCF chose those layers by the accuracy on labelled photos. `parity`
    compares the graph with f32 on photos kept aside. `speeds` were measured in turns under `conditions`.
    `source_sha256` belongs to the artifact's model.onnx, the other two to the files of the int8 graph. `date` is UTC,
    YYYY-MM-DD.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    nncf_version: str
    openvino_version: str
    preset: str
    floating_point: tuple[str, ...]
    accuracy_control: bool
    photos: int
    photos_sha256: str
    parity: ParityReport
    conditions: Conditions
    speeds: tuple[PrecisionSpeed, ...]
    date: str
    source_sha256: str
    xml_sha256: str = ""
    bin_sha256: str = ""


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """An int8 graph in a folder, not read yet."""

    folder: Path
    record: QuantizationRecord

    def path(self) -> Path:
        """The .xml file, whose weights lie beside it. Raises QuantizedGraphError if either differs from its sha256."""
        expected = self.record.xml_sha256, self.record.bin_sha256
        files = _files(self.folder, *expected)
        for file, digest in zip(files, expected, strict=True):
            if not file.is_file() or sha256(file) != digest:
                raise QuantizedGraphError(f"{file} is missing or differs from its record (sha256)")
        return files[0]


def write_quantized(artifact: Path, graph: bytes, weights: bytes, record: QuantizationRecord) -> QuantizedGraph:
    """Write the graph into the artifact folder in place of an older one, the record last.

    A process that has opened the older files keeps them. An interruption leaves the older graph, or nothing. Raises
    OSError if the folder cannot be written.
    """
    folder = artifact / INT8
    digests = hashlib.sha256(graph).hexdigest(), hashlib.sha256(weights).hexdigest()
    files = _files(folder, *digests)
    complete = record.model_copy(update={"xml_sha256": digests[0], "bin_sha256": digests[1]})
    with locked(artifact):
        folder.mkdir(exist_ok=True)
        try:
            folder.chmod(0o755)  # the server may run as another user than the export
            for file, content in zip(files, (graph, weights), strict=True):
                write_atomically(file, content)
            write_atomically(folder / _RECORD, complete.model_dump_json(indent=2).encode() + b"\n")
        finally:
            _delete_unnamed(folder)
    return QuantizedGraph(folder, complete)


def _delete_unnamed(folder: Path) -> None:
    """Delete the graphs that the record does not name, and the folder if it has no record."""
    try:
        record = _read_record(folder)
    except QuantizedGraphError:
        return
    named = (folder / _RECORD, *_files(folder, record.xml_sha256, record.bin_sha256)) if record else ()
    for file in folder.iterdir():
        if file not in named:
            file.unlink()
    if record is None:
        folder.rmdir()


def _files(folder: Path, xml_sha256: str, bin_sha256: str) -> tuple[Path, Path]:
    stem = xml_sha256[:_DIGITS] + bin_sha256[:_DIGITS]
    return folder / f"{stem}.xml", folder / f"{stem}.bin"


def read_quantized(artifact: Artifact) -> QuantizedGraph | None:
    """The int8 graph that was made from the artifact's model.onnx, or None.

    Raises QuantizedGraphError if the record cannot be read.
    """
    folder = artifact.folder / INT8
    record = _read_record(folder)
    if record is None or record.source_sha256 != artifact.manifest.files.get(GRAPH):
        return None
    return QuantizedGraph(folder, record)


def _read_record(folder: Path) -> QuantizationRecord | None:
    try:
        return QuantizationRecord.model_validate_json((folder / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a record that this version reads"
        raise QuantizedGraphError(f"{folder / _RECORD} cannot be read ({reason})") from error
