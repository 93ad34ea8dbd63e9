"""The artifact on disk: written whole or not at all, numbered, and verified to the last byte when it is loaded."""

import json
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.artifact.artifact import (
    GRAPH,
    LABELS,
    MANIFEST,
    WEIGHTS,
    ArtifactError,
    Manifest,
    NotExportedError,
    ParityReport,
    Thresholds,
    WeightRecord,
    WeightSource,
    exported_names,
    load,
    new_version,
    newest_whole,
    read_manifest,
    versions,
    write_manifest,
)
from models.catalog import InputSpec, Interpolation
from models.labels import Label, write_labels

THRESHOLDS = Thresholds(max_abs_diff=1e-3, logit_cosine=0.999, top1_agreement=1.0, top5_agreement=0.9)
REPORT = ParityReport(
    runtime="openvino",
    runtime_version="1",
    precision="f32",
    device="a CPU",
    images=16,
    batch_sizes=(1, 2, 8),
    max_abs_diff=1e-6,
    logit_cosine=1.0,
    top1_agreement=1.0,
    top5_agreement=1.0,
    thresholds=THRESHOLDS,
    passed=True,
)
MANIFEST_OF_NET = Manifest(
    name="net",
    family="nets",
    year=2014,
    paper="none",
    input=InputSpec(resize=36, crop=32, interpolation=Interpolation.BICUBIC, mean=(0.1, 0.2, 0.3)),
    classes=3,
    parameters=7,
    parameters_train=7,
    macs=11,
    acc1=69.778,
    acc5=None,
    weights=WeightRecord(source=WeightSource.FILE, name="net.pth", sha256="ab" * 32),
    parity=(REPORT,),
    tools={"torch": "2.9"},
)


def fill(folder: Path, content: str = "graph") -> None:
    """Write what an export writes; the graph is only text."""
    (folder / GRAPH).write_text(content)
    (folder / WEIGHTS).write_bytes(bytes(range(256)))
    write_labels(folder / LABELS, [Label(number, "", f"class {number}") for number in range(3)])
    write_manifest(folder, MANIFEST_OF_NET)


def add(root: Path, name: str = "net", content: str = "graph") -> None:
    """One more version."""
    with new_version(root, name) as folder:
        fill(folder, content)


def fail(root: Path, error: BaseException) -> None:
    """An export that wrote everything and then fails."""
    with new_version(root, "net") as folder:
        fill(folder, "half")
        raise error


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of version 1 of `net` in place."""
    path = root / "net" / "1" / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_round_trip(tmp_path: Path) -> None:
    """What was written is loaded: manifest, labels, graph, and the parity report of each engine."""
    add(tmp_path)
    artifact = load(tmp_path, "net")

    assert artifact.version == 1
    assert artifact.folder == tmp_path / "net" / "1"
    assert artifact.graph.read_text() == "graph"
    assert artifact.manifest.model_copy(update={"files": {}}) == MANIFEST_OF_NET
    assert artifact.labels == tuple(Label(number, "", f"class {number}") for number in range(3))
    assert artifact.parity("openvino", "f32") == REPORT
    assert artifact.parity("openvino", "bf16") is None
    assert artifact.parity("onnxruntime", "f32") is None


def test_numbers_count_up(tmp_path: Path) -> None:
    """Versions are numbers, not text: the tenth follows the ninth, a hole stays, and the highest is served."""
    for _ in range(10):
        add(tmp_path)
    assert versions(tmp_path, "net") == list(range(1, 11))
    for file in (tmp_path / "net" / "3").iterdir():
        file.unlink()
    (tmp_path / "net" / "3").rmdir()
    add(tmp_path, content="newest")

    assert versions(tmp_path, "net") == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert load(tmp_path, "net").version == 11
    assert load(tmp_path, "net").graph.read_text() == "newest"


def test_what_is_no_version(tmp_path: Path) -> None:
    """Drafts, notes, hidden folders and names that no reply can hold are neither versions nor models."""
    add(tmp_path)
    (tmp_path / ".net-draft" / "1").mkdir(parents=True)
    (tmp_path / "net" / ".2").mkdir()
    (tmp_path / "net" / "old").mkdir()
    (tmp_path / "net" / "7").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("a file")
    for name in (b"\xff", b"two\nlines"):
        (tmp_path / os.fsdecode(name) / "1").mkdir(parents=True)

    assert versions(tmp_path, "net") == [1]
    assert exported_names(tmp_path) == ["net"]
    assert exported_names(tmp_path / "nowhere") == []


def test_number_taken_by_a_file(tmp_path: Path) -> None:
    """A file where the next version should go is an error, not a loop without end, and nothing else is left."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "1").write_text("a file")
    with pytest.raises(NotADirectoryError):
        add(tmp_path)

    assert [child.name for child in (tmp_path / "net").iterdir()] == ["1"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_left_after_an_error(error: type[BaseException], tmp_path: Path) -> None:
    """An export that fails or is interrupted leaves no draft, no folder and no version, and those before it stay."""
    root = tmp_path / "artifacts"
    with pytest.raises(error):
        fail(root, error())
    assert list(root.iterdir()) == []

    add(root)
    with pytest.raises(error):
        fail(root, error())
    assert [child.name for child in root.iterdir()] == ["net"]
    assert versions(root, "net") == [1]
    assert load(root, "net").graph.read_text() == "graph"


def test_draft_is_no_version(tmp_path: Path) -> None:
    """While it is written an artifact is not to be seen: the server would load half of it."""
    with new_version(tmp_path, "net") as folder:
        fill(folder)
        assert exported_names(tmp_path) == []
        with pytest.raises(NotExportedError):
            load(tmp_path, "net")
    assert exported_names(tmp_path) == ["net"]


def test_concurrent_writers(tmp_path: Path) -> None:
    """Exports that end at once get numbers of their own, each its own files; those that fail disturb no other."""
    writers = 8
    barrier = threading.Barrier(writers)

    def write(writer: int) -> None:
        with new_version(tmp_path, "net") as folder:
            fill(folder, f"graph of {writer}")
            barrier.wait(30)
            if writer % 4 == 3:
                raise ValueError("failed")

    with ThreadPoolExecutor(writers) as pool:
        outcomes = [pool.submit(write, writer).exception for writer in range(writers)]
        failed = [type(outcome()) for outcome in outcomes]

    assert failed.count(ValueError) == 2
    assert failed.count(type(None)) == 6
    assert versions(tmp_path, "net") == [1, 2, 3, 4, 5, 6]
    written = {(tmp_path / "net" / str(version) / GRAPH).read_text() for version in versions(tmp_path, "net")}
    assert written == {f"graph of {writer}" for writer in (0, 1, 2, 4, 5, 6)}
    assert [child.name for child in tmp_path.iterdir()] == ["net"]


def test_others_may_read(tmp_path: Path) -> None:
    """The server may run as another user than the export: folder and files are readable by all."""
    with new_version(tmp_path, "net") as folder:
        fill(folder)
        (folder / GRAPH).chmod(0o600)
    folder = tmp_path / "net" / "1"

    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}


def flip_last_bit(path: Path) -> None:
    """Change one bit of the file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"), [(flip_last_bit, "differs from its manifest"), (Path.unlink, "is missing")]
)
@pytest.mark.parametrize("file", [GRAPH, LABELS, WEIGHTS])
def test_damaged_file(file: str, damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """One changed bit in a file, or a file that is gone, is an error that names it and the command that helps."""
    add(tmp_path)
    damage(tmp_path / "net" / "1" / file)

    with pytest.raises(ArtifactError, match=rf"{file} {message}.*run: topfive export net"):
        load(tmp_path, "net")


@pytest.mark.parametrize("file", [GRAPH, LABELS])
def test_unlisted_file(file: str, tmp_path: Path) -> None:
    """A manifest that does not vouch for the graph or the labels is an error: they would be served unverified."""
    add(tmp_path)
    edit_manifest(tmp_path, lambda content: content["files"].pop(file))

    with pytest.raises(ArtifactError, match=f"does not list {file}"):
        load(tmp_path, "net")


def test_missing_manifest(tmp_path: Path) -> None:
    """A version without a manifest, a copy that broke off, does not hide the whole one before it."""
    add(tmp_path)
    (tmp_path / "net" / "2").mkdir()

    assert load(tmp_path, "net").version == 1
    (tmp_path / "net" / "1" / MANIFEST).unlink()
    with pytest.raises(NotExportedError):
        load(tmp_path, "net")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": "net"}', b"{" * 100_000])
def test_not_a_manifest(text: bytes, tmp_path: Path) -> None:
    """A manifest that is not JSON, or not a manifest, is an error that names it and says what to do."""
    add(tmp_path)
    (tmp_path / "net" / "1" / MANIFEST).write_bytes(text)

    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest .*run: topfive export net"):
        load(tmp_path, "net")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"classes": "many"}, "classes"),
        ({"weights": {"source": "guessed", "name": "x"}}, "weights"),
        ({"input": {"crop": "wide"}}, "input"),
        ({"parameters_train": None}, "parameters_train"),
    ],
)
def test_field_that_does_not_fit(change: dict[str, object], field: str, tmp_path: Path) -> None:
    """A field of the wrong kind, or another format of the manifest, is an error that names the field and the remedy."""
    add(tmp_path)
    edit_manifest(tmp_path, lambda content: content.update(change))

    expected = rf"is not a manifest that this version reads \({field}.*\); run: topfive export net"
    with pytest.raises(ArtifactError, match=expected):
        load(tmp_path, "net")


def test_wrong_name(tmp_path: Path) -> None:
    """An artifact in the folder of another model is an error: its answers would be given in that model's name."""
    add(tmp_path, name="other")

    with pytest.raises(ArtifactError, match="holds the model net, not other"):
        load(tmp_path, "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_id,wnid,label\n0,,a\n1,,b\n2,,c\n3,,d\n", r"labels\.csv has 4 rows for 3 classes"),
        ("a,b\n", "lacks the column class_id"),
    ],
    ids=["too many", "no labels"],
)
def test_labels_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    """As many labels as classes, or an error with both numbers; labels that were bad when exported are one as well."""
    with new_version(tmp_path, "net") as folder:
        fill(folder)
        (folder / LABELS).write_text(text)
        write_manifest(folder, MANIFEST_OF_NET)

    with pytest.raises(ArtifactError, match=message):
        load(tmp_path, "net")


@pytest.mark.parametrize("read", [load, read_manifest])
def test_not_exported(read: Callable[[Path, str], object], tmp_path: Path) -> None:
    """A model without an artifact raises with the command that makes one, in this very folder."""
    with pytest.raises(NotExportedError, match=f"run: topfive export net --artifacts {tmp_path}"):
        read(tmp_path, "net")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder are on the disk before the version has its name, and then the name is."""
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        sync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append((name if "." not in name[:1] else "draft", bool(versions(tmp_path, "net"))))

    monkeypatch.setattr("os.fsync", record)
    add(tmp_path)

    version = tmp_path / "net" / "1"
    assert sorted(synced[:-3]) == [(path.name, False) for path in sorted(version.iterdir())]
    assert synced[-3:] == [("draft", False), ("net", True), (tmp_path.name, True)]


def test_newest_whole(tmp_path: Path) -> None:
    """The newest version that can be read is read, and each damage of a newer one told; of none that of the newest."""
    for _ in range(4):
        add(tmp_path)
    versions_of = tmp_path / "net"
    (versions_of / "4" / MANIFEST).write_text("{")
    (versions_of / "3" / GRAPH).unlink()
    (versions_of / "3" / GRAPH).mkdir()

    whole, damaged = newest_whole(tmp_path, "net", load)
    assert whole.version == 2
    assert [f"{number}/" in reason for number, reason in zip((4, 3), damaged, strict=True)] == [True, True]
    (number, _), damaged = newest_whole(tmp_path, "net", read_manifest)
    assert (number, len(damaged)) == (3, 1)
    for number in (1, 2):
        (versions_of / str(number) / LABELS).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"4/manifest\.json"):
        newest_whole(tmp_path, "net", load)
    with pytest.raises(NotExportedError):
        newest_whole(tmp_path, "none", load)
