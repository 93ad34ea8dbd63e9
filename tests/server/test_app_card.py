"""A whole service on a scripted card, from the choice of the engine to both replies, and how each failure ends."""

import asyncio
import gc
import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
from service.engines.selection.opening import OpenedEngine, open_engine
from service.engines.selection.select import EngineOptions
from service.engines.tensorrt.engine import Libraries, TensorRtEngine
from tests.conftest import png
from tests.engines.test_compatibility import ADA, BOTH, machine
from tests.fake_cuda import FakeCudart
from tests.fake_tensorrt import FakeTensorRt, network, plan_bytes
from tests.fakes import reached
from tests.models.test_plan import record
from tests.server.test_app import assert_same
from tests.serving import serving

pytestmark = pytest.mark.anyio

LARGEST = 4


@dataclass
class Station:
    """A machine with an RTX 4090, and an artifact that a plan is built for, on the scripted TensorRT."""

    artifacts: Path
    cache: Path
    cudart: FakeCudart
    trt: FakeTensorRt
    engines: list[TensorRtEngine] = field(default_factory=list)

    @property
    def artifact(self) -> Artifact:
        """The artifact on disk."""
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

    def open(
        self, artifact: Artifact, runtime: Runtime = Runtime.AUTO, precision: Precision = Precision.AUTO
    ) -> OpenedEngine:
        """Open an engine as a service does."""
        return open_engine(
            artifact,
            EngineOptions(runtime, precision, cpus=2, cache=self.cache),
            look=lambda: machine(ADA),
            build_plan=self._engine,
        )

    def assert_clean(self) -> None:
        """All that was made on the card was given back once, and a real one would have refused no call."""
        self.engines.clear()
        gc.collect()
        self.trt.assert_clean()

    def _engine(self, plan: EnginePlan, card: Card, artifact: Artifact, options: EngineOptions) -> Engine:
        engine = TensorRtEngine(
            plan,
            artifact,
            card=card,
            slots=2,
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
    cudart = FakeCudart()
    made = Station(artifacts, tmp_path / "cache", cudart, FakeTensorRt(cudart, Flavour.TENSORRT))
    made.teach()
    made.build()
    return made


async def test_from_the_plan_to_both_replies(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` serves by TensorRT: both replies are the network's own, say what ran, and came by CUDA graphs."""
    async with serving(station.artifacts, open_engine=station.open) as running:
        [engine] = station.engines
        launched = station.cudart.launched
        rest, rpc = await running.rest("/predict", png(10)), await running.rpc(pb.ClassifyRequest(image=png(10)))
        assert station.cudart.launched == launched + 2
        assert engine.captured == (1, 2, LARGEST)
        page = await running.rest("/models/tiny")

    assert_same(rest, rpc)
    size, classes = station.artifact.manifest.input.crop, station.artifact.manifest.classes
    [expected] = network([np.full((size, size, 3), 10, dtype=np.uint8)], classes)
    best = rest["predictions"][0]
    assert best["class_id"] == expected.argmax()
    assert best["probability"] == pytest.approx(float(expected.max()))
    device = f"cuda:{ADA.index} {ADA.name}"
    said = {"runtime": "tensorrt", "version": BOTH[Flavour.TENSORRT], "device": device, "precision": "fp16"}
    assert rest["engine"] == page["engine"] == said
    report = page["parity"][-1]
    assert (report["runtime"], report["device"], report["passed"]) == ("tensorrt", device, True)
    assert report["batch_sizes"] == [1, 3, LARGEST]
    assert page["passed_over"] == []
    assert [built["fits"] for built in page["engines"]] == [True]
    assert [entry for entry in caplog.records if entry.name.startswith("service.engines")] == []
    station.assert_clean()


async def test_a_plan_that_was_changed(station: Station) -> None:
    """A plan that changes after its check answers no request: `auto` serves by the CPU, `--runtime tensorrt` fails."""
    station.open(station.artifact).engine.close()
    [plan] = (station.artifact.folder / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes().replace(b"UINT8", b"FLOAT"))
    async with serving(station.artifacts, open_engine=station.open) as running:
        page, answer = await running.rest("/models/tiny"), await running.rest("/predict", png(10))
    with pytest.raises(NotReady, match="differs from its record"):
        async with serving(station.artifacts, open_engine=partial(station.open, runtime=Runtime.TENSORRT)):
            pass

    [said] = page["passed_over"]
    assert "differs from its record (sha256)" in said
    assert "; openvino in " in said
    assert answer["engine"]["runtime"] == page["engine"]["runtime"] == "openvino"
    station.assert_clean()


async def test_stopped_under_load(station: Station) -> None:
    """Every call that was accepted has the network's answer or a refusal, and the card is left empty."""
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


@pytest.mark.parametrize("runtime", list(Runtime))
def test_nothing_else_than_was_asked_for(station: Station, runtime: Runtime) -> None:
    """With each runtime and each precision either just that runs, or there is an error that says what to do."""
    station.build(precision="f32")
    for precision in Precision:
        try:
            opened = station.open(station.artifact, runtime, precision)
        except EngineUnavailableError as error:
            advice = str(error)
            assert any(words in advice for words in ("run: ", "; use ")), precision
        else:
            info = opened.engine.describe()
            opened.engine.close()
            assert runtime in (Runtime.AUTO, info.runtime)
            assert precision in (Precision.AUTO, info.precision)
    station.assert_clean()
