"""Compiled graphs in the cache: read where they are whole, made again where they are not, never read damaged."""

import json
import locale
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.gate_images import random_pixels
from models.artifact.artifact import Artifact
from service.common.types import Precision, Probabilities, Runtime
from service.engines.openvino.cache import CompiledGraph
from service.engines.openvino.engine import OpenVinoEngine
from service.engines.selection.compatibility import NO_MACHINE
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

Opening = Callable[..., tuple[bool, Probabilities]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def opening(tiny: Artifact, cache: Path) -> Opening:
    """Opens an engine with the cache; whether it came from there, and its answers to the same images."""
    images = random_pixels(tiny.manifest.input, 2)

    def opens(artifact: Artifact = tiny, slots: int = 1, folder: Path = cache) -> tuple[bool, Probabilities]:
        engine = OpenVinoEngine(artifact, Precision.F32, slots=slots, threads=1, max_batch=2, cache=folder)
        try:
            return engine.from_cache, engine.run(images)
        finally:
            engine.close()

    return opens


def blobs(cache: Path) -> list[Path]:
    """What OpenVINO wrote."""
    return sorted(cache.rglob("*.blob"))


def test_second_opening_reads_the_first(opening: Opening, cache: Path) -> None:
    """The first compiles and keeps, the second does not compile; answers are the same bit for bit."""
    first, second = opening(), opening()

    assert (first[0], second[0]) == (False, True)
    assert np.array_equal(first[1], second[1])
    [blob] = blobs(cache)
    assert [path.name for path in blob.parent.iterdir()].count("seal.json") == 1
    assert blob.stat().st_mode & 0o777 == 0o644
    assert len(list(blob.parent.parent.iterdir())) == 1


def flipped(content: bytes) -> bytes:
    """One byte of the weights changed, which OpenVINO itself does not notice."""
    at = len(content) * 3 // 4
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def cut_in_half(content: bytes) -> bytes:
    """The first half."""
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [flipped, cut_in_half, lambda _: b""], ids=["flipped", "cut", "empty"])
def test_damaged_graph_is_compiled_again(
    opening: Opening, cache: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit its seal is not read: the answers stay right, the damage is said, the next start reads anew."""
    _, right = opening()
    [blob] = blobs(cache)
    blob.write_bytes(damage(blob.read_bytes()))

    again = opening()

    assert not again[0]
    assert np.array_equal(again[1], right)
    assert f"{blob.parent} is damaged" in caplog.text
    assert opening()[0]


@pytest.mark.parametrize("seal", [None, "", "[]", "{}", "3", '{"gone.blob": "0"}'])
def test_damaged_seal(opening: Opening, cache: Path, seal: str | None) -> None:
    """A seal that is missing, cannot be read, or names nothing or another file, counts as damage."""
    opening()
    [blob] = blobs(cache)
    if seal is None:
        (blob.parent / "seal.json").unlink()
    else:
        (blob.parent / "seal.json").write_text(seal)

    assert [opening()[0] for _ in range(2)] == [False, True]


def test_cache_that_cannot_be_written_is_done_without(opening: Opening, tmp_path: Path) -> None:
    """A file in the place of the folder refuses like a read-only disk: the engine is compiled and answers."""
    (tmp_path / "file").write_text("")

    assert [opening(folder=tmp_path / "file")[0] for _ in range(2)] == [False, False]
    assert (tmp_path / "file").read_text() == ""


def test_what_differs_has_its_own_place(opening: Opening, tiny: Artifact, cache: Path, tmp_path: Path) -> None:
    """Other slots and another graph are compiled by themselves, and each is read again."""
    manifest = tiny.manifest.model_copy(update={"files": {**tiny.manifest.files, "model.onnx": "f" * 64}})
    other = replace(tiny, manifest=manifest)

    assert [opening()[0], opening(slots=2)[0], opening(other)[0]] == [False] * 3
    assert [opening()[0], opening(slots=2)[0], opening(other)[0]] == [True] * 3
    assert len(blobs(cache)) == 3


def test_servers_that_start_at_once_leave_one(tiny: Artifact, opening: Opening, cache: Path) -> None:
    """Several that compile the same at the same time all answer alike, and leave one whole copy and no draft."""
    with ThreadPoolExecutor(4) as threads:
        answers = [one[1] for one in threads.map(lambda _: opening(), range(4))]

    assert all(np.array_equal(one, answers[0]) for one in answers)
    [blob] = blobs(cache)
    assert json.loads((blob.parent / "seal.json").read_text()).keys() == {blob.name}
    assert len(list(blob.parent.parent.iterdir())) == 1
    assert opening()[0]


def test_the_oldest_leave(tmp_path: Path) -> None:
    """Of one graph only so many are kept, the newest; those of other graphs are not touched."""
    other = CompiledGraph.of(tmp_path, "b" * 64, ("x",))
    places = [CompiledGraph.of(tmp_path, "a" * 64, (str(number),)) for number in range(9)]
    for place in (other, *places):
        with place.draft() as draft:
            assert draft is not None
            (draft / "some.blob").write_bytes(b"compiled")

    assert [place.verify() for place in places] == [False] * 3 + [True] * 6
    assert other.verify()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, None], ids=["all", "group", "others", "owner"])
def test_folder_that_others_may_write_is_not_read(
    opening: Opening, cache: Path, mode: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write there can seal what he likes: it is compiled anew, said, and kept where only we may write."""
    opening()
    [blob] = blobs(cache)
    if mode is not None:
        blob.parent.chmod(mode)
    elif os.geteuid() == 0:
        os.chown(blob.parent, 12345, -1)
    else:
        pytest.skip("only root gives files away")

    assert not opening()[0]
    assert f"{blob.parent} can be written by another user" in caplog.text
    assert opening()[0]


def test_drafts_of_killed_servers_leave(tmp_path: Path) -> None:
    """What was killed while it compiled leaves a draft: an old one is removed, one that may be under way is not."""
    place = CompiledGraph.of(tmp_path, "a" * 64, ("x",))
    old, young = (place.folder.parent / f".draft-{name}" for name in ("old", "young"))
    for path, age_s in ((old, 7200), (young, 60)):
        path.mkdir(parents=True)
        (path / "half.blob").write_bytes(b"half")
        began = path.stat().st_mtime - age_s
        os.utime(path, (began, began))

    with place.draft():
        pass

    assert not old.exists()
    assert young.exists()


def test_nothing_compiled_is_no_entry(tmp_path: Path) -> None:
    """A runtime that wrote nothing, or failed, leaves neither an entry nor a draft."""
    place = CompiledGraph.of(tmp_path, "a" * 64, ("x",))
    with place.draft():
        pass

    def fails() -> None:
        with place.draft() as draft:
            assert draft is not None
            (draft / "half.blob").write_bytes(b"half")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fails()

    assert list(place.folder.parent.iterdir()) == []
    assert not place.verify()


def test_options_bring_the_cache_to_the_engine(tiny: Artifact, cache: Path) -> None:
    """What the server opens is kept where the options say, and where they say nothing nothing is kept."""
    options = EngineOptions(Runtime.OPENVINO, Precision.F32, cpus=1, cache=cache)

    def from_cache(options: EngineOptions) -> bool:
        engine = open_engine(tiny, options, look=lambda: NO_MACHINE).engine
        engine.close()
        assert isinstance(engine, OpenVinoEngine)
        return engine.from_cache

    assert [from_cache(options) for _ in range(2)] == [False, False]
    assert blobs(cache) == []
    assert [from_cache(replace(options, keep_compiled=True)) for _ in range(2)] == [False, True]


def test_the_locale_stays(opening: Opening) -> None:
    """OpenVINO changes the locale of the process for a moment: many openings at once leave it as it was."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda slots: opening(slots=slots), [1, 2] * 20))
        assert locale.setlocale(locale.LC_ALL) == before
    finally:
        locale.setlocale(locale.LC_ALL, before)
