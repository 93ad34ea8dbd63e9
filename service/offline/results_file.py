"""Writes results to one file, CSV, JSON lines or Parquet, which appears only when it is complete."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from service.offline.images import OfflineError, printable
from service.offline.journal import ImageResult

_ROW_GROUP = 10_000
_PREDICTION_COLUMNS = ("class_id", "wnid", "label", "probability")


class ResultsFormat(StrEnum):
    """The formats of results files, by suffix."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The results of all images in their final order, each with up to `top_k` classes of `model`."""

    results: Iterable[ImageResult]
    top_k: int
    model: Mapping[str, object]

    @property
    def columns(self) -> list[str]:
        """The path, the error (`code: detail`, or empty), then four columns for each class, best first."""
        ranks = range(1, self.top_k + 1)
        return ["path", "error", *(f"top{rank}_{column}" for rank in ranks for column in _PREDICTION_COLUMNS)]

    def cells(self, result: ImageResult) -> list[Any]:
        """The row of one image. A cell without a value is None."""
        found = [getattr(one, column) for one in result.predictions for column in _PREDICTION_COLUMNS]
        error = None if result.error is None else str(result.error)
        return [result.path, error, *found, *[None] * (len(_PREDICTION_COLUMNS) * self.top_k - len(found))]


def format_of(path: Path) -> ResultsFormat:
    """The format by the suffix of `path`. Raises OfflineError if there is none, or its writer is missing."""
    try:
        found = ResultsFormat(path.suffix.lower().removeprefix("."))
    except ValueError:
        known = ", ".join(f".{one}" for one in ResultsFormat)
        raise OfflineError(f"the suffix of {path} names no format of results; use one of {known}") from None
    if found is ResultsFormat.PARQUET and find_spec("pyarrow") is None:
        raise OfflineError("writing .parquet needs pyarrow; run: pip install '.[parquet]', or use .csv or .jsonl")
    return found


def write_results(path: Path, table: ResultTable) -> None:
    """Write the table in the format of the suffix, and replace an older file. Raises OSError.

    File names that are not UTF-8: a CSV keeps their bytes, JSON lines escape lone surrogates, as Python reads them
    back, and Parquet, which takes UTF-8 only, has `\xff`.
    """
    writers = {
        ResultsFormat.CSV: lambda draft: write_csv(draft, table.columns, map(table.cells, table.results)),
        ResultsFormat.JSONL: lambda draft: _write_jsonl(draft, table),
        ResultsFormat.PARQUET: lambda draft: _write_parquet(draft, table),
    }
    with replacing(path) as draft:
        writers[format_of(path)](draft)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to. It replaces `path` when the block ends, and is deleted after an error.

    The draft is always a new file: what another user put at its name, such as a link, is not written through.
    """
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV. None is an empty cell; bytes of a file's name that are no UTF-8 stay as they are."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_jsonl(path: Path, table: ResultTable) -> None:
    with path.open("w", encoding="ascii") as file:
        for result in table.results:
            row = asdict(result)
            if result.truth is None:
                del row["truth"]
            file.write(json.dumps({**row, "model": table.model}) + "\n")


def _write_parquet(path: Path, table: ResultTable) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"class_id": pa.int32(), "probability": pa.float32()}
    fields = [(name, types.get(name.partition("_")[2], pa.string())) for name in table.columns]
    schema = pa.schema(fields, metadata={"topfive": json.dumps(table.model)})
    rows = ([printable(path), *others] for path, *others in map(table.cells, table.results))
    with parquet.ParquetWriter(path, schema) as file:
        while group := list(islice(rows, _ROW_GROUP)):
            columns = [
                pa.array(cells, field.type) for cells, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
