"""The models of a whole service through both transports: REST and gRPC say the same of each model."""

from pathlib import Path
from typing import Any

import pytest

from models.artifact.artifact import load, write_manifest
from models.artifact.engine_plan import EnginePlan
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import Code
from service.common.types import Layout, Precision
from service.engines.selection.compatibility import Source, judge
from service.engines.selection.opening import Choice
from tests.conftest import png
from tests.engines.test_compatibility import ADA, TURING, machine
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.models.test_plan import record
from tests.serving import Running, comparable, serving

pytestmark = pytest.mark.anyio


def facts(value: Any) -> Any:
    """What a reply says: without what is zero or empty, which REST leaves null where gRPC leaves it unset."""
    if isinstance(value, dict):
        return {key: facts(item) for key, item in comparable(value).items() if facts(item)}
    return [facts(item) for item in value] if isinstance(value, list) else value


def row_of(info: dict[str, Any]) -> Any:
    """The row of a model, with the fields that gRPC keeps in its part `model`."""
    return facts(info.pop("model") | info)


def page_of(detail: dict[str, Any]) -> Any:
    """The page of a model, with the fields that gRPC keeps in its parts."""
    return row_of(detail.pop("info")) | facts(detail | {"weights_file": detail.pop("weights", None)})


async def test_same_models(running: Running) -> None:
    """Both transports know the same models in the same states, with the same facts, in the list and on each page."""
    rest, rpc = await running.rest("/models"), await running.rpc(pb.ListModelsRequest())
    pages = [await running.rest(f"/models/{row['name']}") for row in rest["models"]]
    details = [await running.rpc(pb.GetModelRequest(name=row["name"])) for row in rest["models"]]

    assert rest["default"] == rpc["default_model"] == "tiny"
    assert facts(rest["models"]) == [row_of(info) for info in rpc["models"]]
    assert facts(pages) == [page_of(detail) for detail in details]
    assert len(pages) > 10
    [tiny] = [page for page in pages if page["name"] == "tiny"]
    assert (tiny["state"], tiny["weights"], tiny["acc1"]) == ("ready", "untrained", None)
    assert "mean nothing" in tiny["warnings"][0]
    assert tiny["parity"][0]["passed"]
    assert tiny["weights_file"]["source"] == "untrained"


@pytest.mark.parametrize(
    ("models", "default"), [("tiny,untrained", "tiny"), ("tiny,second,third", "second"), ("third,tiny", "third")]
)
async def test_default_is_trained(artifacts: Path, caplog: pytest.LogCaptureFixture, models: str, default: str) -> None:
    """The first trained model answers requests that name none; an untrained one only if all are. The log says it."""
    copy_model(artifacts, "untrained")
    for name in ("second", "third"):
        copy_model(artifacts, name, {"weights": {"source": "file", "name": "some.safetensors", "sha256": "0" * 64}})
    async with serving(artifacts, FakeEngine(), models=tuple(models.split(","))) as running:
        answer = await running.rest("/predict", png())
        listed = await running.rest("/models")

    assert answer["model"]["name"] == listed["default"] == default
    assert (f"{default} answers if a request names no model" in caplog.text) is (default != models.split(",")[0])


async def test_same_engines(exported: Path) -> None:
    """Both transports say alike which engines are built and fit, what was passed over and how the check ended."""
    tiny = load(exported, "tiny")
    report = tiny.manifest.parity[0].model_copy(update={"runtime": "tensorrt-rtx", "precision": "fp16"})
    source = Source.of(tiny)
    plan = EnginePlan(Path("some.plan"), record(graph_sha256=source.graph_sha256))
    fits = tuple(judge(plan, source, machine(card), Precision.AUTO) for card in (ADA, TURING))
    layout = Layout(2, 1, 8, "tuned on 2026-11-22")
    choice = Choice(("tensorrt-rtx does not run tiny; fake in f32 serves instead",), fits, (report,), layout)
    async with serving(exported, FakeEngine(), choice=choice) as running:
        page, detail = await running.rest("/models/tiny"), await running.rpc(pb.GetModelRequest(name="tiny"))

    assert facts(page) == page_of(detail)
    assert page["passed_over"] == list(choice.passed_over)
    assert page["layout"] == {"slots": 2, "threads": 1, "max_batch": 8, "origin": "tuned on 2026-11-22"}
    good, bad = page["engines"]
    assert (good["fits"], good["card"], good["reason"], good["remedy"]) == (True, None, "", "")
    assert (bad["fits"], bad["card"]) == (False, None)
    assert "built for sm86, sm89" in bad["reason"]
    assert bad["remedy"].startswith("topfive export tiny --engine tensorrt-rtx")
    assert page["parity"][-1]["runtime"] == "tensorrt-rtx"


async def test_same_layers(exported: Path) -> None:
    """Both transports give the same table of layers, with totals as in the list, before any model is loaded.

    The list itself is not ready then.
    """
    async with serving(exported, FakeEngine(), load=False) as running:
        models, models_by_rpc = await running.rest("/models"), await running.rpc(pb.ListModelsRequest())
        body, rpc = await running.rest("/models/tiny/layers"), await running.rpc(pb.GetLayersRequest(name="tiny"))
        states = [entry.state for entry in running.data_plane.repository.entries() if entry.name == "tiny"]

    assert facts(body) == facts(rpc)
    assert (body["model"], body["version"], body["input_shape"]) == ("tiny", 1, [3, 32, 32])
    assert (body["parameters"], body["macs"]) == (20_752, 181_888)
    assert [stage["name"] for stage in body["stages"]] == ["features.0", "features.1", "features.2", "classifier"]
    assert body["layers"][0]["share"] == pytest.approx(100 * 55_296 / 181_888, abs=0.0005)
    assert states == ["exported"]
    assert models == models_by_rpc
    assert models["code"] == Code.NOT_READY


@pytest.mark.parametrize(
    ("name", "code", "detail"),
    [
        ("tinny", Code.MODEL_NOT_FOUND, "did you mean tiny"),
        ("resnet50@IMAGENET1K_V1", Code.MODEL_NOT_FOUND, "topfive export resnet50@IMAGENET1K_V1"),
        ("old", Code.MODEL_NOT_FOUND, "version 1 of old has no layers.json"),
        ("tiny", Code.NOT_READY, "layers.json differs from its manifest"),
    ],
)
async def test_no_layers(artifacts: Path, name: str, code: Code, detail: str) -> None:
    """Where there is no table both transports say why in the same words, and what to do."""
    copy_model(artifacts, "old")
    old = load(artifacts, "old")
    (old.folder / "layers.json").unlink()
    write_manifest(old.folder, old.manifest)
    (artifacts / "tiny" / "1" / "layers.json").write_text("{}")
    async with serving(artifacts, FakeEngine(), load=False) as running:
        rest, rpc = await running.rest(f"/models/{name}/layers"), await running.rpc(pb.GetLayersRequest(name=name))

    assert rest == rpc
    assert rest["code"] == code
    assert detail in rest["detail"]


async def test_damaged_manifest(artifacts: Path) -> None:
    """An unreadable manifest of a model outside the catalog leaves the list as it was, and its page names it."""
    (artifacts / "mine" / "1").mkdir(parents=True)
    (artifacts / "mine" / "1" / "manifest.json").write_text("{")
    async with serving(artifacts, FakeEngine()) as running:
        rest, rpc = await running.rest("/models"), await running.rpc(pb.ListModelsRequest())
        page, detail = await running.rest("/models/mine"), await running.rpc(pb.GetModelRequest(name="mine"))

    assert facts(rest["models"]) == [row_of(info) for info in rpc["models"]]
    assert "mine" not in [row["name"] for row in rest["models"]]
    assert page == detail
    assert page["code"] == Code.NOT_READY
