"""Writes results to one file, CSV, JSON lines or Parquet, which appears only when it is complete."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from service.offline.images import OfflineError, printable
from service.offline.journal import ImageResult

_ROW_GROUP = 10_000
_PREDICTION_COLUMNS = ("class_id", "wnid", "label", "probability")


class ResultsFormat(StrEnum):
    """The formats of results files, by suffix."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


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


def write_results(path: Path, results: Iterable[ImageResult], top_k: int, model: Mapping[str, object]) -> None:
    """Write a row for each result, with up to `top_k` classes of `model`, in the format of the suffix.

    An older file is replaced. Raises OfflineError if it cannot be written. File names that are not UTF-8: a CSV keeps
    their bytes, JSON lines escape lone surrogates, as Python reads them back, and Parquet, which takes UTF-8 only, has
    `\xff`.
    """
    kind = format_of(path)
    with _replacing(path) as draft:
        if kind is ResultsFormat.JSONL:
            _write_jsonl(draft, results, model)
        elif kind is ResultsFormat.CSV:
            _write_csv(draft, results, top_k)
        else:
            _write_parquet(draft, results, top_k, model)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to. It replaces `path` when the block ends, and is deleted after an error.

    The draft is always a new file: what another user put at its name, such as a link, is not written through.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield draft
        draft.replace(path)
    except OSError as error:
        raise OfflineError(f"{path} cannot be written: {error.strerror}; the same command tries again") from error
    finally:
        draft.unlink(missing_ok=True)


def _columns(top_k: int) -> list[str]:
    """The path, the error (`code: detail`, or empty), then four columns for each class, best first."""
    ranks = range(1, top_k + 1)
    return ["path", "error", *(f"top{rank}_{column}" for rank in ranks for column in _PREDICTION_COLUMNS)]


def _cells(result: ImageResult, top_k: int) -> list[object]:
    """The row of one image. A cell without a value is None."""
    found = [getattr(one, column) for one in result.predictions for column in _PREDICTION_COLUMNS]
    error = None if result.error is None else str(result.error)
    return [result.path, error, *found, *[None] * (len(_PREDICTION_COLUMNS) * top_k - len(found))]


def _write_csv(path: Path, results: Iterable[ImageResult], top_k: int) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_columns(top_k))
        writer.writerows(_cells(result, top_k) for result in results)


def _write_jsonl(path: Path, results: Iterable[ImageResult], model: Mapping[str, object]) -> None:
    with path.open("w", encoding="ascii") as file:
        for result in results:
            row = asdict(result)
            if result.truth is None:
                del row["truth"]
            file.write(json.dumps({**row, "model": model}) + "\n")


def _write_parquet(path: Path, results: Iterable[ImageResult], top_k: int, model: Mapping[str, object]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"class_id": pa.int32(), "probability": pa.float32()}
    fields = [(name, types.get(name.partition("_")[2], pa.string())) for name in _columns(top_k)]
    schema = pa.schema(fields, metadata={"topfive": json.dumps(model)})
    rows = ([printable(str(name)), *others] for name, *others in (_cells(result, top_k) for result in results))
    with parquet.ParquetWriter(path, schema) as file:
        while group := list(islice(rows, _ROW_GROUP)):
            columns = [
                pa.array(cells, field.type) for cells, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
