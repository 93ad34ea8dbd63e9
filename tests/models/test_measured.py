"""Measured accuracy: how it enters a manifest, and where it is seen."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.artifact.artifact import MANIFEST, load, read_manifest
from models.artifact.measured import MeasuredAccuracy, delete_accuracy, read_measured, record_accuracy
from proto.topfive.v1 import classifier_pb2 as pb
from service.cli.main import main
from tests.fakes import FakeEngine
from tests.serving import serving

pytestmark = pytest.mark.anyio


def measurement(**changes: object) -> MeasuredAccuracy:
    """One of ten images, all right."""
    values = {
        "dataset": "photos",
        "dataset_sha256": "a" * 64,
        "images": 10,
        "acc1": 90.0,
        "acc1_low": 59.58,
        "acc1_high": 98.21,
        "acc5": 100.0,
        "acc5_low": 72.25,
        "acc5_high": 100.0,
        "crops": 1,
        "runtime": "openvino",
        "precision": "f32",
        "date": "2026-01-02",
        **changes,
    }
    return MeasuredAccuracy.model_validate(values)


def manifest_of(artifacts: Path) -> Path:
    """The manifest of version 1 of tiny."""
    return artifacts / "tiny" / "1" / MANIFEST


def test_all_else_stays(artifacts: Path) -> None:
    """Recording changes nothing but `measured`, keeps keys of a newer release, and the artifact still verifies."""
    path = manifest_of(artifacts)
    before = {**json.loads(path.read_text()), "of_a_newer_release": {"a": [1]}}
    path.write_text(json.dumps(before))
    mode = path.stat().st_mode

    record_accuracy(path, measurement())

    after = json.loads(path.read_text())
    assert {key: value for key, value in after.items() if key != "measured"} == {
        key: value for key, value in before.items() if key != "measured"
    }
    assert load(artifacts, "tiny").manifest.measured == (measurement(),)
    assert path.stat().st_mode == mode
    assert sorted(child.name for child in path.parent.iterdir()) == sorted([MANIFEST, *before["files"]])


def test_deleted_with_its_engine(artifacts: Path) -> None:
    """Deleting what was measured in int8 on OpenVINO keeps other runtimes and precisions."""
    path = manifest_of(artifacts)
    others = [measurement(), measurement(runtime="tensorrt", precision="int8")]
    for one in (others[0], measurement(precision="int8"), others[1]):
        record_accuracy(path, one)

    delete_accuracy(path, "openvino", "int8")

    assert load(artifacts, "tiny").manifest.measured == tuple(others)


def test_newer_replaces_the_same(artifacts: Path) -> None:
    """Of the same images, crops, runtime and precision the newest counts; any other stands beside it."""
    path = manifest_of(artifacts)
    others = [
        measurement(dataset_sha256="b" * 64),
        measurement(runtime="onnxruntime"),
        measurement(precision="bf16"),
        measurement(crops=10),
    ]
    for one in (measurement(), *others, measurement(dataset="renamed", acc1=80.0)):
        record_accuracy(path, one)

    assert read_measured(path) == (*others, measurement(dataset="renamed", acc1=80.0))


def test_concurrent_readers_and_writers(artifacts: Path) -> None:
    """Readers never meet half a manifest while several writers record, and no writer's figure is lost."""
    path = manifest_of(artifacts)
    writers, each = 4, 10
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            _, manifest = read_manifest(artifacts, "tiny")
            seen.append(len(manifest.measured))

    def write(writer: int) -> None:
        for count in range(each):
            record_accuracy(path, measurement(dataset_sha256=f"{writer}-{count}"))

    with ThreadPoolExecutor(writers + 2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for writing in [pool.submit(write, writer) for writer in range(writers)]:
            writing.result()
        done.set()
        for reading in readers:
            reading.result()

    assert len({one.dataset_sha256 for one in read_measured(path) or ()}) == writers * each
    assert seen


@pytest.mark.parametrize("content", ["", "{", "[]", '{"measured": [{"dataset": 1}]}'])
def test_unreadable(content: str, tmp_path: Path) -> None:
    """A manifest that cannot be read gives None, which is not the same as no measurement."""
    (tmp_path / MANIFEST).write_text(content)

    assert read_measured(tmp_path / MANIFEST) is None
    assert read_measured(tmp_path / "none.json") is None


async def test_running_server_shows_it(artifacts: Path) -> None:
    """A server that has loaded the model shows, in both transports, what another process measured meanwhile."""
    async with serving(artifacts, FakeEngine()) as running:
        assert (await running.http.get("/models/tiny")).json()["measured"] == []

        record_accuracy(manifest_of(artifacts), measurement())
        record_accuracy(manifest_of(artifacts), measurement(precision="bf16", acc5=None, acc5_low=None, acc5_high=None))

        page = (await running.http.get("/models/tiny")).json()
        rows = (await running.http.get("/models")).json()["models"]
        info = (await running.stub.GetModel(pb.GetModelRequest(name="tiny"))).info
        listed = (await running.stub.ListModels(pb.ListModelsRequest())).models

    assert [one["acc1"] for one in page["measured"]] == [90.0, 90.0]
    assert page["measured"][0] == measurement().model_dump(mode="json")
    assert next(row for row in rows if row["name"] == "tiny")["measured"] == page["measured"]
    assert (info.measured[0].dataset, info.measured[0].acc5_low, info.measured[0].images) == ("photos", 72.25, 10)
    assert not info.measured[1].HasField("acc5")
    assert next(row for row in listed if row.model.name == "tiny").measured == info.measured


def test_models_command_shows_it(artifacts: Path) -> None:
    """`topfive models` has a line for a measured model and none for others; --json has the figures."""
    record_accuracy(manifest_of(artifacts), measurement())

    text = CliRunner().invoke(main, ["models", "--artifacts", str(artifacts)], env={"COLUMNS": "200"}).output
    as_json = CliRunner().invoke(main, ["models", "--artifacts", str(artifacts), "--json"]).stdout

    (line,) = [line for line in text.splitlines() if "measured" in line]
    assert "tiny v1 measured: top-1 90.0 % [59.6, 98.2], top-5 100.0 % [72.2, 100.0] on 10 images of photos" in line
    rows = {row["name"]: row["measured"] for row in json.loads(as_json)}
    assert rows["tiny"] == [measurement().model_dump(mode="json")]
    assert rows["googlenet"] == []
