"""The parts of a long run: what is found, the journal, the runner, the results file."""

import asyncio
import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pyarrow import parquet

from service.common.types import Prediction
from service.offline.journal import Journal, discard
from service.offline.rows import BulkError, Failure, Item, Row
from service.offline.runner import complete, rows, window
from service.offline.sources import find
from service.offline.writers import Format, Results, format_of, write
from tests.conftest import png
from tests.fakes import settle

pytestmark = pytest.mark.anyio

SETTINGS = {"model": "tiny", "version": 1, "top_k": 2}
ODD_NAMES = ["plain.png", "a,b.png", 'quo"te.png', "line\nbreak.png", "zo\u00eb.png", os.fsdecode(b"caf\xe9.png")]


def good(name: str, *best: int) -> Row:
    """A row with these classes, best first."""
    found = enumerate(best or (1, 2), start=1)
    return Row(
        name, None, tuple(Prediction(rank, id_, f"n{id_:08}", f"class, {id_}", 0.5 / rank) for rank, id_ in found)
    )


def bad(name: str, code: str = "bad_image") -> Row:
    """A row with an error."""
    return Row(name, Failure(code, 'not "an" image,\nat all'))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images at several depths, and files that are none."""
    for name in ("b.png", "a.JPG", "sub/deep/c.webp", "sub/d.jpeg", "notes.md", "labels.csv"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return tmp_path / "in"


def names(arguments: list[str], folder: Path) -> list[str]:
    """What `find` gives, relative to the folder."""
    return [str(item.file.relative_to(folder)) for item in find(arguments)]


def test_folder(folder: Path) -> None:
    """A folder gives every image below it by suffix in any case, sorted within each folder."""
    assert names([str(folder)], folder) == ["a.JPG", "b.png", "sub/d.jpeg", "sub/deep/c.webp"]


def test_patterns_and_files(folder: Path) -> None:
    """A pattern gives the images that it matches, ** at any depth; a file is taken as it is; each counts once."""
    assert names([f"{folder}/*"], folder) == ["a.JPG", "b.png"]
    assert names([f"{folder}/**/*.w*"], folder) == ["sub/deep/c.webp"]
    assert (
        names([f"{folder}/b.png", str(folder / "sub" / ".." / "notes.md"), f"{folder}/./b.png"], folder)[0] == "b.png"
    )
    assert len(find([str(folder), f"{folder}/**", f"{folder}/sub/../b.png"])) == 4


def test_name_with_magic(folder: Path) -> None:
    """A file whose name looks like a pattern is that file."""
    (folder / "x[1].png").write_bytes(png())

    assert names([f"{folder}/x[1].png"], folder) == ["x[1].png"]


def test_lists(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of a list are relative to its folder, else to the working directory; one that is nowhere is kept."""
    monkeypatch.chdir(tmp_path)
    (folder / "list.txt").write_text(f"\ufeffb.png\n\n  sub/d.jpeg \nin/a.JPG\n{folder}/b.png\nnone.png\n", "utf-8")
    (folder / "list.csv").write_text('path,other\r\n"b.png",1\r\n,2\r\n', "utf-8")

    assert [str(item.file) for item in find([str(folder / "list.txt")])] == [
        f"{folder}/b.png",
        f"{folder}/sub/d.jpeg",
        "in/a.JPG",
        f"{folder}/none.png",
    ]
    assert names([str(folder / "list.csv")], folder) == ["b.png"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("empty", r"no image below the folder .*\.jpeg"),
        ("in/*.gif", r"no image matches in/\*\.gif; looked for .*\.webp"),
        ("none", "none does not exist"),
        ("in/labels.csv", "has no column 'path'"),
        ("empty.txt", "names no image"),
    ],
)
def test_nothing_found(
    argument: str, reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no image is an error that says what was looked for, even beside others that have some."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (folder / "labels.csv").write_text("file,label\n")

    with pytest.raises(BulkError, match=reason):
        find([str(folder), argument])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_journal_keeps_names(name: str, tmp_path: Path) -> None:
    """Any name that a file can have comes back, with its row."""
    with Journal(tmp_path / "j", SETTINGS) as journal:
        journal.append(good(name, 3, 4))
        journal.append(bad("other"))
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert list(journal.rows(["other", name])) == [bad("other"), good(name, 3, 4)]


def test_journal_cut_anywhere(tmp_path: Path) -> None:
    """A journal that ends at any byte keeps its whole lines, loses the torn one, and goes on to the same end."""
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        for name in ("a", "b", "c"):
            journal.append(good(name))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete_lines = max(0, whole[:size].count(b"\n") - 1)
        with Journal(path, SETTINGS) as journal:
            assert [name in journal for name in ("a", "b", "c")] == [complete_lines > number for number in range(3)]
            for name in ("a", "b", "c"):
                if name not in journal:
                    journal.append(good(name))
        assert path.read_bytes() == whole


def test_journal_of_other_settings(tmp_path: Path) -> None:
    """A journal of other settings is refused, saying what differs and what to do, and stays as it is."""
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.append(good("a"))
    before = path.read_bytes()

    with pytest.raises(BulkError, match=r"version was 1 and is now 2; .*--overwrite.*--out"):
        Journal(path, {**SETTINGS, "version": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["notes of mine", "notes\nof mine\n", '{"settings": {"a": 1}', "[]\n"])
def test_not_a_journal(content: str, tmp_path: Path) -> None:
    """A file that is something else is refused and stays as it is; a torn header is begun again."""
    path = tmp_path / "j"
    path.write_text(content)
    if content.startswith("{"):
        with Journal(path, SETTINGS) as journal:
            assert "a" not in journal
    else:
        with pytest.raises(BulkError, match="damaged in line 1"):
            Journal(path, SETTINGS)
        assert path.read_text() == content


def test_damaged_line(tmp_path: Path) -> None:
    """A line in the middle that is no row is refused with its number."""
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.append(good("a"))
    with path.open("a") as file:
        file.write('{"path": 1}\n')

    with pytest.raises(BulkError, match="damaged in line 3"):
        Journal(path, SETTINGS)


def test_two_at_once(tmp_path: Path) -> None:
    """A second run over the same journal is refused while the first goes on."""
    with (
        Journal(tmp_path / "j", SETTINGS),
        pytest.raises(BulkError, match="another topfive is writing"),
        Journal(tmp_path / "j", SETTINGS),
    ):
        pass


def test_discarded(tmp_path: Path) -> None:
    """A journal is put away unless a run is writing it; that run's rows stay."""
    path = tmp_path / "j"
    discard(path)
    with Journal(path, SETTINGS) as journal:
        journal.append(good("a"))
        with pytest.raises(BulkError, match="another topfive is writing"):
            discard(path)
        assert list(journal.rows(["a"])) == [good("a")]
    discard(path)
    assert not path.exists()


def test_put_away_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that the run before puts away between its opening and its lock is not written to."""
    path = tmp_path / "j"

    def late(file: int, _kind: int) -> None:
        path.unlink()

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(BulkError, match="another topfive is writing"):
        Journal(path, SETTINGS)


def test_engine_failures_are_run_again(tmp_path: Path) -> None:
    """A row that says the engine failed counts as done now, and as missing in the next run; the newer row counts."""
    with Journal(tmp_path / "j", SETTINGS) as journal:
        journal.append(bad("a", "internal"))
        assert "a" in journal
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert "a" not in journal
        journal.append(good("a"))
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert list(journal.rows(["a"])) == [good("a")]


def test_window() -> None:
    """Two batches for each slot and the decoders' images, but never more than there are places."""
    assert window(slots=2, max_batch=8, decoders=2, capacity=256, crops=1) == 34
    assert window(slots=4, max_batch=64, decoders=16, capacity=256, crops=1) == 256


def test_window_of_crops() -> None:
    """Each image takes a place for each crop, so fewer fill the batches; one image is always begun."""
    assert window(slots=2, max_batch=8, decoders=2, capacity=256, crops=10) == 6
    assert window(slots=4, max_batch=64, decoders=16, capacity=256, crops=10) == 25
    assert window(slots=1, max_batch=1, decoders=1, capacity=5, crops=10) == 1


class Answers:
    """Answers each item once `release` is called for it; counts those under way."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[Row]] = {}
        self.begun: list[str] = []

    async def __call__(self, item: Item) -> Row:
        self.begun.append(item.name)
        self.waiting[item.name] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[item.name]
        finally:
            del self.waiting[item.name]

    def release(self, name: str) -> None:
        self.waiting[name].set_result(good(name))


def items(count: int) -> list[Item]:
    """Images 0, 1, 2, ..."""
    return [Item(str(number), Path(str(number))) for number in range(count)]


async def test_window_is_kept() -> None:
    """Never more than the window are under way, a new one begins as one ends, rows come as they are finished."""
    answers = Answers()
    seen: list[str] = []

    async def consume() -> None:
        async for row in rows(items(6), answers, size=3, stop=asyncio.Event()):
            seen.append(row.path)

    task = asyncio.create_task(consume())
    await settle()
    assert sorted(answers.waiting) == ["0", "1", "2"]
    answers.release("2")
    await settle()
    assert (seen, sorted(answers.waiting)) == (["2"], ["0", "1", "3"])
    for name in ("0", "1", "3"):
        answers.release(name)
    await settle()
    assert sorted(answers.waiting) == ["4", "5"]
    for name in ("5", "4"):
        answers.release(name)
    await task
    assert seen[-2:] == ["5", "4"]
    assert answers.begun == ["0", "1", "2", "3", "4", "5"]


async def test_stop_finishes_what_is_under_way(tmp_path: Path) -> None:
    """After a stop nothing new begins, what is under way is kept, and the next run begins only what is missing."""
    stop, answers = asyncio.Event(), Answers()
    with Journal(tmp_path / "j", SETTINGS) as journal:
        run = complete(journal, items(5), answers, size=2, stop=stop, watch=lambda _: None)
        task = asyncio.create_task(run)
        await settle()
        answers.release("0")
        await settle()
        stop.set()
        answers.release("1")
        await settle()
        answers.release("2")
        assert not await task
    assert answers.begun == ["0", "1", "2"]

    second = Answers()
    with Journal(tmp_path / "j", SETTINGS) as journal:
        run = complete(journal, items(5), second, size=9, stop=asyncio.Event(), watch=lambda _: None)
        task = asyncio.create_task(run)
        await settle()
        for name in list(second.waiting):
            second.release(name)
        assert await task
        assert [row.path for row in journal.rows(str(number) for number in range(5))] == ["0", "1", "2", "3", "4"]
    assert second.begun == ["3", "4"]


async def test_cancelled() -> None:
    """Leaving the rows early cancels what is under way."""
    answers = Answers()
    async with aclosing(rows(items(5), answers, size=3, stop=asyncio.Event())) as some:
        waiting = asyncio.ensure_future(anext(some))
        await settle()
        answers.release("0")
        assert (await waiting).path == "0"
    assert answers.waiting == {}


async def test_error_ends_it() -> None:
    """What is not one image's own trouble ends the run, and nothing is left under way."""
    answers = Answers()

    async def consume() -> None:
        async for _ in rows(items(5), answers, size=3, stop=asyncio.Event()):
            pass

    task = asyncio.create_task(consume())
    await settle()
    answers.waiting["1"].set_exception(BulkError("the disk is full"))
    with pytest.raises(BulkError, match="the disk is full"):
        await task
    assert answers.waiting == {}


def results() -> Results:
    """Rows with every odd name, and an error, at most three classes each."""
    found = [good(name, 7, 8) for name in ODD_NAMES]
    return Results([*found, bad("bad.png")], 3, {"name": "tiny", "version": 1})


def test_csv_round_trip(tmp_path: Path) -> None:
    """A CSV gives back every path, byte for byte, errors and figures; classes that are not there are empty."""
    write(tmp_path / "r.csv", results())
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = list(csv.DictReader(file))

    assert [row["path"] for row in table] == [*ODD_NAMES, "bad.png"]
    assert list(table[0])[:6] == ["path", "error", "top1_class_id", "top1_wnid", "top1_label", "top1_probability"]
    assert len(table[0]) == 2 + 3 * 4
    assert (table[0]["top2_class_id"], table[0]["top2_label"], table[0]["top2_probability"]) == (
        "8",
        "class, 8",
        "0.25",
    )
    assert (table[0]["error"], table[0]["top3_label"]) == ("", "")
    assert table[-1]["error"] == 'bad_image: not "an" image,\nat all'
    assert b"caf\xe9.png" in (tmp_path / "r.csv").read_bytes()


def test_jsonl_round_trip(tmp_path: Path) -> None:
    """Each line is an object that stands alone, with the model's facts."""
    write(tmp_path / "r.jsonl", results())
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text("ascii").splitlines()]

    assert [line["path"] for line in lines] == [*ODD_NAMES, "bad.png"]
    assert lines[0]["model"] == {"name": "tiny", "version": 1}
    assert (lines[0]["error"], lines[0]["predictions"][1]["class_id"]) == (None, 8)
    assert lines[-1]["error"] == {"code": "bad_image", "detail": 'not "an" image,\nat all'}
    assert lines[-1]["predictions"] == []


def test_parquet_round_trip(tmp_path: Path) -> None:
    """Parquet has the columns of the CSV with types; bytes that are not UTF-8 are written out."""
    write(tmp_path / "r.parquet", results())
    table = parquet.read_table(tmp_path / "r.parquet")

    assert table.column_names == results().columns
    assert [str(table.schema.field(name).type) for name in table.column_names[1:6]] == [
        "string",
        "int32",
        "string",
        "string",
        "float",
    ]
    assert table["path"].to_pylist() == [*ODD_NAMES[:-1], "caf\\xe9.png", "bad.png"]
    assert table["top1_probability"].to_pylist()[0] == 0.5
    assert table["top3_label"].null_count == len(table)
    assert table["error"].to_pylist()[-1] == 'bad_image: not "an" image,\nat all'
    assert json.loads(table.schema.metadata[b"topfive"]) == {"name": "tiny", "version": 1}


def test_half_a_file_never_shows(tmp_path: Path) -> None:
    """Where the rows end in an error the old results stay, and nothing else is left."""
    (tmp_path / "r.csv").write_text("old")

    def failing() -> Iterator[Row]:
        yield good("a")
        raise BulkError("broken")

    with pytest.raises(BulkError, match="broken"):
        write(tmp_path / "r.csv", Results(failing(), 2, {}))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.csv", "old")]


def test_formats() -> None:
    """The suffix says the format in any case; an unknown one is refused with those known."""
    assert [format_of(Path(name)) for name in ("a.CSV", "a.jsonl", "a.parquet")] == list(Format)
    for name in ("a.xlsx", "a", "a.csv.gz"):
        with pytest.raises(BulkError, match=r"use one of \.csv, \.jsonl, \.parquet"):
            format_of(Path(name))


def test_parquet_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow a .parquet is refused with the line that installs it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(BulkError, match=r"pip install '\.\[parquet\]'"):
        format_of(Path("a.parquet"))
