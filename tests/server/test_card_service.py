"""The whole way on a card that is scripted: choose, check, run, batch, and both replies; and how each failure ends."""

import asyncio
import gc
import hashlib
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from models.artifact.artifact import GRAPH, Artifact, load, write_manifest
from models.artifact.engine_plan import BatchProfile, EnginePlan, Flavour, write_plan
from models.artifact.reference import read_reference, write_reference
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import NotReady
from service.common.gpus import Card
from service.common.types import Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection import select
from service.engines.selection.opening import Opened, open_engine
from service.engines.selection.select import EngineOptions
from service.engines.tensorrt.engine import Libraries, TensorRtEngine
from tests.conftest import png
from tests.engines.test_compatibility import ADA, BOTH, machine
from tests.fake_cuda import Error, FakeCudart
from tests.fake_tensorrt import FakeTensorRt, network, plan_bytes
from tests.fakes import reached
from tests.models.test_plan import record
from tests.server.test_transports import assert_same, by_grpc, by_rest
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

LARGEST = 4
SLOTS = 2


@dataclass
class Station:
    """A machine with an RTX 4090 and an artifact with a plan, whose answers are those of the scripted TensorRT."""

    artifacts: Path
    cache: Path
    engines: list[TensorRtEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cudart = FakeCudart()
        self.trt = FakeTensorRt(self.cudart, Flavour.TENSORRT)

    @property
    def artifact(self) -> Artifact:
        """The artifact as it lies there."""
        return load(self.artifacts, "tiny")

    def teach(self) -> None:
        """Make the answers of the scripted network those that the artifact keeps."""
        artifact = self.artifact
        reference = read_reference(artifact.folder)
        assert reference is not None
        answers = network(list(reference.images), artifact.manifest.classes)
        write_reference(artifact.folder, reference.images, answers)
        write_manifest(artifact.folder, artifact.manifest)

    def build(self, **changes: object) -> EnginePlan:
        """Put a plan for the card into the artifact."""
        artifact = self.artifact
        content = plan_bytes(artifact.manifest.input.crop, artifact.manifest.classes, (1, 2, LARGEST))
        made = {
            "flavour": Flavour.TENSORRT,
            "version": BOTH[Flavour.TENSORRT],
            "targets": ("sm89",),
            "card": ADA.name,
            "profile": BatchProfile(smallest=1, best=2, largest=LARGEST),
            "graph_sha256": artifact.manifest.files[GRAPH],
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content),
        }
        return write_plan(artifact.folder, content, record(**{**made, **changes}))

    def open(self, artifact: Artifact, options: EngineOptions | None = None) -> Opened:
        """What a service opens engines with."""
        return open_engine(
            artifact,
            options or EngineOptions(Runtime.AUTO, Precision.AUTO, cpus=2, cache=self.cache),
            look=lambda: machine(ADA),
            build_plan=self._engine,
        )

    def strictly(self, artifact: Artifact) -> Opened:
        """The same with `--runtime tensorrt`."""
        return self.open(artifact, EngineOptions(Runtime.TENSORRT, cpus=2, cache=self.cache))

    def assert_clean(self) -> None:
        """All that was made on the card was given back once, and nothing was done that a real one punishes."""
        self.engines.clear()
        gc.collect()
        self.trt.assert_clean()

    def _engine(self, plan: EnginePlan, card: Card, artifact: Artifact, options: EngineOptions) -> Engine:
        engine = TensorRtEngine(
            plan,
            artifact,
            card=card,
            slots=SLOTS,
            max_batch=options.max_batch,
            cache=options.cache,
            libraries=Libraries(self.trt, self.cudart, "580.82.07"),
        )
        self.engines.append(engine)
        return engine


@pytest.fixture
def station(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    """A station with a plan."""
    monkeypatch.setattr(select, "is_installed", lambda _flavour: True)
    made = Station(artifacts, tmp_path / "cache")
    made.teach()
    made.build()
    return made


async def row(running: Running) -> dict[str, Any]:
    """What the list of models says of `tiny`, by REST; gRPC must say the same of what was passed over."""
    models = (await running.http.get("/models")).json()["models"]
    [found] = [one for one in models if one["name"] == "tiny"]
    [info] = [one for one in (await running.stub.ListModels(pb.ListModelsRequest())).models if one.model.name == "tiny"]
    assert list(info.passed_over) == found["passed_over"]
    return dict(found)


async def test_from_the_plan_to_both_replies(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` serves by TensorRT: both replies are the network's own, say what ran, and came by CUDA graphs."""
    async with serving(station.artifacts, open_engine=station.open) as running:
        [engine] = station.engines
        launched = station.cudart.launched
        rest = await by_rest(running, png(10), "tiny", 5)
        rpc = await by_grpc(running, png(10), "tiny", 5)
        assert station.cudart.launched == launched + 2
        assert engine.captured == (1, 2, LARGEST)
        assert (await row(running))["passed_over"] == []
        page = (await running.http.get("/models/tiny")).json()

    assert_same(rest, rpc)
    assert rest.reply is not None
    size, classes = station.artifact.manifest.input.crop, station.artifact.manifest.classes
    [expected] = network([np.full((size, size, 3), 10, dtype=np.uint8)], classes)
    best = rest.reply["predictions"][0]
    assert best["class_id"] == expected.argmax()
    assert best["probability"] == pytest.approx(float(expected.max()))
    device = f"cuda:{ADA.index} {ADA.name}"
    said = {"runtime": "tensorrt", "version": BOTH[Flavour.TENSORRT], "device": device, "precision": "fp16"}
    assert rest.reply["engine"] == page["engine"] == said
    report = page["parity"][-1]
    assert (report["runtime"], report["device"], report["passed"]) == ("tensorrt", device, True)
    assert report["batch_sizes"] == [1, 3, LARGEST]
    assert [built["fits"] for built in page["engines"]] == [True]
    assert [entry for entry in caplog.records if entry.name.startswith("service.engines")] == []
    station.assert_clean()


async def test_a_plan_that_answers_wrongly(station: Station, artifacts: Path, exported: Path) -> None:
    """It serves nobody: `auto` serves by the CPU and says so at both edges; `--runtime tensorrt` does not start."""
    folder = load(exported, "tiny").folder
    shutil.copytree(folder, station.artifact.folder, dirs_exist_ok=True)  # the true answers, which it does not give
    async with serving(artifacts, open_engine=station.open) as running:
        found = await row(running)
        answer = await by_rest(running, png(10), "tiny", 5)
    with pytest.raises(NotReady, match="its answers on this card differ from the original's"):
        async with serving(artifacts, open_engine=station.strictly):
            pass

    [note] = found["passed_over"]
    assert "its answers on this card differ" in note
    assert "; openvino in " in note
    assert answer.reply is not None
    assert answer.reply["engine"]["runtime"] == found["engine"]["runtime"] == "openvino"
    assert len(station.engines) == 1
    station.assert_clean()


async def test_another_plan_under_the_same_record(station: Station) -> None:
    """Bytes that are not those of the record are not loaded, whatever report is kept for those that were."""
    async with serving(station.artifacts, open_engine=station.open):
        pass
    [plan] = (station.artifact.folder / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes().replace(b"UINT8", b"FLOAT"))
    async with serving(station.artifacts, open_engine=station.open) as running:
        found = await row(running)
    with pytest.raises(NotReady, match="differs from its record"):
        async with serving(station.artifacts, open_engine=station.strictly):
            pass

    assert found["engine"]["runtime"] == "openvino"
    assert "differs from its record (sha256)" in found["passed_over"][0]
    station.assert_clean()


async def test_full_memory_halves_the_batch(station: Station) -> None:
    """A batch that the card has no memory for runs in halves: the caller has its answer, and batches stay smaller."""
    async with serving(station.artifacts, open_engine=station.open) as running:
        station.cudart.script.fail("cudaGraphLaunch", Error.cudaErrorMemoryAllocation)
        answer = await running.http.post("/predict?crops=10", files={"image": png(10, size=(64, 64))})
        again = await running.http.post("/predict", files={"image": png(10)})
        metrics = (await running.http.get("/metrics")).text
        ready = await running.http.get("/readyz")

    assert (answer.status_code, again.status_code, ready.status_code) == (200, 200, 200)
    assert answer.json()["engine"]["runtime"] == "tensorrt"
    [line] = [line for line in metrics.splitlines() if line.startswith("topfive_max_batch{")]
    assert line.split()[-1] == f"{LARGEST / 2}"
    station.assert_clean()


async def test_a_lost_card(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    """Its caller has an error, the process is told to end with the reason, and nothing of the card is touched again."""
    async with serving(station.artifacts, open_engine=station.open) as running:
        station.cudart.script.fail("cudaEventSynchronize", Error.cudaErrorIllegalAddress)
        answer = await by_rest(running, png(10), "tiny", 5)
        alive = await running.http.get("/livez")
        ready = await running.http.get("/readyz")

    assert (answer.code, alive.status_code, ready.status_code) == ("internal", 503, 503)
    said = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.CRITICAL]
    assert said
    assert all("cudaErrorIllegalAddress" in text for text in said)
    assert station.cudart.freed["device"] == 0
    assert station.cudart.misused == []


async def test_stopped_under_load(station: Station) -> None:
    """Every request that was accepted has the network's answer or a refusal, and the card is left empty."""
    async with serving(station.artifacts, open_engine=station.open) as running:
        calls = [running.stub.Classify(pb.ClassifyRequest(image=png(shade))) for shade in range(40)]
        ended = asyncio.gather(*calls, return_exceptions=True)
        await reached(lambda: any(call.done() for call in calls))
        await running.service.stop(asyncio.Event())
        replies = await ended

    refused = [one for one in replies if isinstance(one, BaseException)]
    assert len(refused) < len(replies)
    assert all(isinstance(one, AioRpcError) and one.code() is StatusCode.UNAVAILABLE for one in refused)
    assert all(one.engine.runtime == "tensorrt" for one in replies if not isinstance(one, BaseException))
    station.assert_clean()


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("runtime", list(Runtime))
def test_nothing_else_than_was_asked_for(station: Station, runtime: Runtime, precision: Precision) -> None:
    """With each runtime and each precision either just that runs, or there is an error that says what to do."""
    station.build(precision="f32")
    options = EngineOptions(runtime, precision, cpus=1, cache=station.cache)
    try:
        opened = station.open(station.artifact, options)
    except EngineUnavailableError as error:
        advice = str(error)
        assert any(words in advice for words in ("run: ", "; use "))
    else:
        info = opened.engine.describe()
        opened.engine.close()
        assert runtime in (Runtime.AUTO, info.runtime)
        assert precision in (Precision.AUTO, info.precision)
    station.assert_clean()
