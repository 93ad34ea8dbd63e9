"""The results file in each format; it is written whole or not at all."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import parquet

from service.offline.images import OfflineError
from service.offline.journal import ImageResult
from service.offline.results_file import ResultsFormat, format_of, write_results
from tests.offline.results import ODD_NAMES, bad, good

MODEL = {"name": "tiny", "version": 1}


RESULTS = [*(good(name, 7, 8) for name in ODD_NAMES), bad("bad.png")]
"""Results with every odd name, and an error."""


def test_csv(tmp_path: Path) -> None:
    """A CSV gives back every path, byte for byte, errors and figures; classes that are not there are empty."""
    write_results(tmp_path / "r.csv", RESULTS, 3, MODEL)
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = list(csv.DictReader(file))

    assert [row["path"] for row in table] == [*ODD_NAMES, "bad.png"]
    assert list(table[0])[:6] == ["path", "error", "top1_class_id", "top1_wnid", "top1_label", "top1_probability"]
    assert len(table[0]) == 2 + 3 * 4
    second = [table[0][f"top2_{column}"] for column in ("class_id", "label", "probability")]
    assert second == ["8", "class, 8", "0.25"]
    assert (table[0]["error"], table[0]["top3_label"]) == ("", "")
    assert table[-1]["error"] == 'bad_image: not "an" image,\nat all'
    assert b"caf\xe9.png" in (tmp_path / "r.csv").read_bytes()


def test_jsonl(tmp_path: Path) -> None:
    """Each line of a JSONL file is an object with the model."""
    write_results(tmp_path / "r.jsonl", RESULTS, 3, MODEL)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text("ascii").splitlines()]

    assert [line["path"] for line in lines] == [*ODD_NAMES, "bad.png"]
    assert lines[0]["model"] == MODEL
    assert (lines[0]["error"], lines[0]["predictions"][1]["class_id"]) == (None, 8)
    assert lines[-1]["error"] == {"code": "bad_image", "detail": 'not "an" image,\nat all'}
    assert lines[-1]["predictions"] == []


def test_parquet(tmp_path: Path) -> None:
    """Parquet has the columns of the CSV with types; bytes that are not UTF-8 are written out."""
    write_results(tmp_path / "r.parquet", RESULTS, 3, MODEL)
    table = parquet.read_table(tmp_path / "r.parquet")

    assert table.column_names[:3] == ["path", "error", "top1_class_id"]
    assert len(table.column_names) == 2 + 3 * 4
    types = [str(table.schema.field(name).type) for name in table.column_names[1:6]]
    assert types == ["string", "int32", "string", "string", "float"]
    assert table["path"].to_pylist() == [*ODD_NAMES[:-1], "caf\\xe9.png", "bad.png"]
    assert table["top1_probability"].to_pylist()[0] == 0.5
    assert table["top3_label"].null_count == len(table)
    assert table["error"].to_pylist()[-1] == 'bad_image: not "an" image,\nat all'
    assert json.loads(table.schema.metadata[b"topfive"]) == MODEL


def test_half_a_file_never_shows(tmp_path: Path) -> None:
    """If the results end in an error, the old file stays, and no other file is left."""
    (tmp_path / "r.csv").write_text("old")

    def failing() -> Iterator[ImageResult]:
        yield good("a")
        raise OfflineError("broken")

    with pytest.raises(OfflineError, match="broken"):
        write_results(tmp_path / "r.csv", failing(), 2, {})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.csv", "old")]


def test_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suffix names the format in any case; an unknown one, or one without its package, is refused with advice."""
    assert [format_of(Path(name)) for name in ("a.CSV", "a.jsonl", "a.parquet")] == list(ResultsFormat)
    for name in ("a.xlsx", "a", "a.csv.gz"):
        with pytest.raises(OfflineError, match=r"use one of \.csv, \.jsonl, \.parquet"):
            format_of(Path(name))

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OfflineError, match=r"pip install '\.\[parquet\]'"):
        format_of(Path("a.parquet"))


@pytest.mark.parametrize("suffix", list(ResultsFormat))
def test_links_are_not_followed(tmp_path: Path, suffix: str) -> None:
    """A link that another user put where the draft goes is replaced, and the file that it names keeps its bytes."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".r.{suffix}.draft").symlink_to(victim)
    write_results(tmp_path / f"r.{suffix}", RESULTS, 3, MODEL)

    assert victim.read_bytes() == b"precious"
    assert (tmp_path / f"r.{suffix}").stat().st_size > 100
    assert not (tmp_path / f"r.{suffix}").is_symlink()
