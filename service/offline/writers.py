"""The finished results as one file, CSV, JSON lines or Parquet; it appears only when it is whole."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from service.offline.rows import BulkError, Row
from service.offline.sources import printable

_ROW_GROUP = 10_000
_FACTS = ("class_id", "wnid", "label", "probability")  # of each of the best classes


class Format(StrEnum):
    """Kinds of results files, each the suffix of its name."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Results:
    """All rows in their final order, each with at most `top_k` classes; `model` says what answered."""

    rows: Iterable[Row]
    top_k: int
    model: Mapping[str, object]

    @property
    def columns(self) -> list[str]:
        """Columns of a table of them: path, error (empty, or code: detail), then four for each class, best first."""
        return ["path", "error", *(f"top{rank}_{fact}" for rank in range(1, self.top_k + 1) for fact in _FACTS)]

    def cells(self, row: Row) -> list[Any]:
        """One row of that table; None where there is no such class."""
        found = [getattr(prediction, fact) for prediction in row.predictions for fact in _FACTS]
        error = None if row.error is None else f"{row.error.code}: {row.error.detail}"
        return [row.path, error, *found, *[None] * (len(_FACTS) * self.top_k - len(found))]


def format_of(path: Path) -> Format:
    """The kind of a results file. Raises BulkError where the suffix is unknown, or what writes it is not installed."""
    try:
        kind = Format(path.suffix.lower().removeprefix("."))
    except ValueError:
        known = ", ".join(f".{one}" for one in Format)
        raise BulkError(f"{path} says no known kind of results by its suffix; use one of {known}") from None
    if kind is Format.PARQUET and find_spec("pyarrow") is None:
        raise BulkError("writing .parquet needs pyarrow; run: pip install '.[parquet]', or use .csv or .jsonl")
    return kind


def write(path: Path, results: Results) -> None:
    """Write them as the suffix of `path` says, in the place of what is there.

    Names of files are bytes: those that are not UTF-8 are the same bytes in a CSV, JSON escapes of lone surrogates
    (as Python reads them back) in JSON lines, and in Parquet, which takes UTF-8 only, `\\xff` written out.
    Raises OSError where the file cannot be written.
    """
    writers = {Format.CSV: _write_csv, Format.JSONL: _write_jsonl, Format.PARQUET: _write_parquet}
    with replacing(path) as draft:
        writers[format_of(path)](draft, results)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV; None is an empty cell, and bytes of a name that are no UTF-8 stay what they are."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _write_csv(path: Path, results: Results) -> None:
    write_table(path, results.columns, (results.cells(row) for row in results.rows))


def _write_jsonl(path: Path, results: Results) -> None:
    with path.open("w", encoding="ascii") as file:
        for row in results.rows:
            file.write(json.dumps({**row.to_json(), "model": results.model}) + "\n")


def _write_parquet(path: Path, results: Results) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"class_id": pa.int32(), "probability": pa.float32()}
    fields = [(name, kinds.get(name.partition("_")[2], pa.string())) for name in results.columns]
    schema = pa.schema(fields, metadata={"topfive": json.dumps(results.model)})
    rows = iter(results.rows)
    with parquet.ParquetWriter(path, schema) as file:
        while group := [results.cells(row) for row in islice(rows, _ROW_GROUP)]:
            for cells in group:
                cells[0] = printable(cells[0])
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
