"""Another version takes over while requests run: none is lost, a failure changes nothing, memory comes back."""

import asyncio
import gc
import shutil
import weakref
from functools import partial
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH
from service.common.errors import BadRequest, ModelNotFound, NotReady, ShuttingDown, TopfiveError
from service.common.model_info import ModelState, ModelVersion
from service.common.types import ModelControl
from service.engines.base import CPU, EngineUnavailableError
from service.repository.model_info import model_detail
from service.repository.watch import Watch
from tests.exposition import value
from tests.fakes import reached, settle
from tests.fleet import copy_model, copy_version
from tests.repository.host import Host, host_of

pytestmark = pytest.mark.anyio

EXPLICIT, WATCH = ModelControl.EXPLICIT, ModelControl.WATCH


async def version(host: Host, name: str = "tiny") -> int:
    """The version that answers requests which name none."""
    return (await host.repository.get(name)).card.version


async def look(host: Host, times: int = 2) -> None:
    """Let a watch look so often; twice is what it takes to see that a change is over."""
    for _ in range(times):
        pending = host.clock.pending
        await host.clock.advance(2.0)
        await reached(partial(lambda count: host.clock.pending >= count, pending))
        await settle()


# --- replace ---


async def test_requests_end_on_the_version_that_they_began_with(artifacts: Path) -> None:
    """The old version answers its requests, and is closed after the last of them; later ones get the new version."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny"])
        running = await host.busy("tiny")
        copy_version(artifacts, 2)
        assert (await host.repository.replace("tiny")).card.version == 2
        assert await version(host) == 2
        assert [engine.closed for engine in host.engines] == [False, False]
        host.open_gates()
        assert await running == 7
        await reached(lambda: host.engines[0].closed)
        assert [engine.closed for engine in host.engines] == [True, False]
        assert await host.classify("tiny", 9) == 9
        assert value(host.metrics, "topfive_device_models", device=CPU) == 1.0
        assert host.changes == [True] * len(host.changes)


async def test_the_old_version_serves_while_the_new_one_loads(artifacts: Path) -> None:
    """The server stays ready and answers with the old version until the engine of the new one is open."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny"])
        copy_version(artifacts, 2)
        host.gate.clear()
        replacing = asyncio.create_task(host.repository.replace("tiny"))
        await reached(lambda: host.begun == 2)
        assert (await version(host), host.ready()) == (1, True)
        assert await host.classify("tiny", 3) == 3
        host.gate.set()
        await replacing
        assert await version(host) == 2


async def test_memory_of_ten_replaced_versions_comes_back(artifacts: Path) -> None:
    """Of eleven versions, one after the other, ten engines are closed and no model is left in memory."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny"])
        old = []
        for number in range(2, 12):
            old.append(weakref.ref(await host.repository.get("tiny")))
            copy_version(artifacts, number)
            await host.repository.replace("tiny")
        await reached(lambda: len(host.open) == 1)
        await settle()
        gc.collect()
        assert [model() for model in old] == [None] * 10
        assert value(host.metrics, "topfive_device_bytes", device=CPU) == host.unit


@pytest.mark.parametrize("damaged", [True, False])
async def test_a_failed_load_leaves_the_old_version(
    artifacts: Path, damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A new version that is damaged or does not open changes nothing; /models, a list, the log and a metric tell it."""
    async with host_of(artifacts, control=WATCH) as host:
        await host.repository.start(["tiny"])
        watch = Watch(host.repository, host.clock)
        watch.start()
        copy_version(artifacts, 2)
        if damaged:
            (artifacts / "tiny" / "2" / GRAPH).write_bytes(b"damaged")
        else:
            host.refuses["tiny cpu"] = [EngineUnavailableError("its graph is odd")]
        await look(host)
        await reached(lambda: bool(value(host.metrics, "topfive_failed_loads_total", model="tiny")))
        reason = "sha256" if damaged else "its graph is odd"
        assert (await version(host), host.ready(), host.open) == (1, True, ["tiny"])
        assert "version 1 serves, because" in model_detail(host.repository.entry("tiny")).warnings[-1]
        assert reason in model_detail(host.repository.entry("tiny")).warnings[-1]
        assert reason in caplog.text
        states = [one.state for one in host.repository.versions() if one.name == "tiny"]
        assert states == [ModelState.READY, ModelState.EXPORTED]

        shutil.rmtree(artifacts / "tiny" / "2")
        await look(host)
        await reached(lambda: len(model_detail(host.repository.entry("tiny")).warnings) == 1)
        assert [one.version for one in host.repository.versions() if one.name == "tiny"] == [1]
        watch.stop()


async def test_a_version_without_room_does_not_evict_the_one_that_serves(artifacts: Path) -> None:
    """Where the budget has room for one version, a replacement fails, and the old version goes on."""
    copy_version(artifacts, 2)
    async with host_of(artifacts, {CPU: 1}) as host:
        await host.repository.get("tiny", version=1)
        await host.repository.replace("tiny", 1)
        with pytest.raises(NotReady, match=r"tiny needs about .*--memory-budget-mib"):
            await host.repository.replace("tiny")
        assert (await version(host), len(host.engines)) == (1, 1)


async def test_a_version_whose_files_changed_is_loaded_again(artifacts: Path) -> None:
    """A folder that was deleted and exported again under the same number takes over as another version does."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny"])
        await host.repository.replace("tiny")
        assert len(host.engines) == 1
        copy_version(artifacts, 2)
        (artifacts / "tiny" / "2" / "more").touch()
        shutil.rmtree(artifacts / "tiny" / "1")
        (artifacts / "tiny" / "2").rename(artifacts / "tiny" / "1")
        manifest = artifacts / "tiny" / "1" / "manifest.json"
        more = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        manifest.write_text(manifest.read_text().replace('"files": {', f'"files": {{"more": "{more}",'))
        await host.repository.replace("tiny")
        await reached(lambda: [engine.closed for engine in host.engines] == [True, False])
        assert await host.classify("tiny", 4) == 4


# --- watch ---


async def test_a_watch_rolls_forward_and_back(artifacts: Path) -> None:
    """A new version takes over once its folder stays as it is; when it is removed, the one before does again."""
    async with host_of(artifacts, control=WATCH) as host:
        await host.repository.start(["tiny"])
        watch = Watch(host.repository, host.clock)
        watch.start()
        await look(host, 3)
        copy_version(artifacts, 2)
        (artifacts / "tiny" / "1" / "broken link").symlink_to("nowhere")
        await look(host, 1)
        assert await version(host) == 1
        await look(host)
        await reached(lambda: host.repository.loaded_model("tiny").card.version == 2)  # type: ignore[union-attr]
        shutil.rmtree(artifacts / "tiny" / "2")
        await look(host)
        await reached(lambda: host.repository.loaded_model("tiny").card.version == 1)  # type: ignore[union-attr]
        await reached(lambda: len(host.open) == 1)
        assert len(host.engines) == 3
        shutil.rmtree(artifacts / "tiny")
        await look(host)
        assert await host.classify("tiny", 5) == 5
        watch.stop()
        assert host.clock.pending == 0


async def test_a_failed_load_is_tried_again_after_a_minute(artifacts: Path) -> None:
    """A version that could not be loaded is tried again by itself, but not at every look."""
    async with host_of(artifacts, control=WATCH) as host:
        await host.repository.start(["tiny"])
        watch = Watch(host.repository, host.clock)
        watch.start()
        host.refuses["tiny cpu"] = [MemoryError("nothing left")]
        copy_version(artifacts, 2)
        await look(host, 20)
        assert (host.begun, await version(host)) == (2, 1)
        await look(host, 20)
        await reached(lambda: host.begun == 3)
        await reached(lambda: len(host.open) == 1)
        assert await version(host) == 2
        watch.stop()


# --- explicit ---


async def test_models_come_and_go_when_told_to(artifacts: Path) -> None:
    """A model is loaded by `load` alone, stays loaded, and is gone after `unload`; the last one leaves it unready."""
    copy_model(artifacts, "b")
    async with host_of(artifacts, control=EXPLICIT) as host:
        await host.repository.start(["tiny"])
        with pytest.raises(ModelNotFound, match="b is not loaded, and requests load no model"):
            await host.classify("b")
        await host.repository.load("b")
        assert await host.classify("b", 3) == 3
        assert host.repository.loaded == ("tiny", "b")
        await host.repository.unload("tiny")
        assert (host.repository.default, host.ready()) == ("b", True)
        with pytest.raises(ModelNotFound, match="tiny is not loaded"):
            await host.classify("tiny")
        with pytest.raises(ModelNotFound, match="tiny is not loaded"):
            await host.repository.unload("tiny")
        await host.repository.unload("b")
        assert not host.ready()
        with pytest.raises(NotReady, match="every model was unloaded"):
            _ = host.repository.default
        await reached(lambda: host.open == [])
        await host.repository.load("tiny")
        assert (host.repository.default, host.ready()) == ("tiny", True)


async def test_an_older_version_is_loaded_to_roll_back(artifacts: Path) -> None:
    """`load` of an older version takes over from the newest; a request may still name the newest."""
    copy_version(artifacts, 2)
    async with host_of(artifacts, control=EXPLICIT) as host:
        await host.repository.start(["tiny"])
        await host.repository.load("tiny", 1)
        assert await version(host) == 1
        assert (await host.repository.get("tiny", version=2)).card.version == 2
        assert await version(host) == 1
        with pytest.raises(ModelNotFound, match="no version 3"):
            await host.repository.load("tiny", 3)
        assert [one for one in host.repository.versions() if one.name == "tiny"] == [
            ModelVersion("tiny", 1, ModelState.READY, ""),
            ModelVersion("tiny", 2, ModelState.READY, ""),
        ]
        await host.repository.unload("tiny")
        assert {one.reason for one in host.repository.versions()} == {"not loaded"}
        await reached(lambda: host.open == [])


async def test_a_load_ends_without_its_caller(artifacts: Path) -> None:
    """The model of a load whose caller leaves is kept loaded, as every model that was asked for so."""
    async with host_of(artifacts, control=EXPLICIT) as host:
        copy_model(artifacts, "b")
        await host.repository.start(["tiny"])
        host.gate.clear()
        loading = asyncio.create_task(host.repository.load("b"))
        await reached(lambda: host.begun == 2)
        loading.cancel()
        await settle()
        host.gate.set()
        await reached(lambda: host.repository.loaded == ("tiny", "b"))
        await host.repository.unload("tiny")
        assert (host.repository.default, host.ready()) == ("b", True)


async def test_an_unload_waits_for_a_load(artifacts: Path) -> None:
    """An unload that comes during a load follows it: the model is not loaded, and the server does not wait for it."""
    async with host_of(artifacts, control=EXPLICIT) as host:
        copy_model(artifacts, "b")
        await host.repository.start(["tiny"])
        host.gate.clear()
        loading = asyncio.create_task(host.repository.load("b"))
        await reached(lambda: host.begun == 2)
        unloading = asyncio.create_task(host.repository.unload("b"))
        await settle()
        host.gate.set()
        await asyncio.gather(loading, unloading)
        assert (host.repository.loaded, host.ready()) == (("tiny",), True)


async def test_a_failed_load_adds_no_model(artifacts: Path) -> None:
    """After a load that fails the server has the models that it had; the list has the reason until one succeeds."""
    copy_model(artifacts, "b")
    async with host_of(artifacts, control=EXPLICIT) as host:
        await host.repository.start(["tiny"])
        host.refuses["b cpu"] = [EngineUnavailableError("its graph is odd")]
        with pytest.raises(NotReady, match="its graph is odd"):
            await host.repository.load("b")
        assert host.ready()
        [b] = [one for one in host.repository.versions() if one.name == "b"]
        assert (b.state, "its graph is odd" in b.reason) == (ModelState.EXPORTED, True)
        with pytest.raises(ModelNotFound):
            await host.repository.load("unknown")
        await host.repository.load("b")
        assert [one.reason for one in host.repository.versions() if one.name == "b"] == [""]


@pytest.mark.parametrize("control", [ModelControl.NONE, WATCH])
async def test_requests_control_nothing_unless_they_may(exported: Path, control: ModelControl) -> None:
    """Without explicit control a request to load or unload is refused with the option."""
    async with host_of(exported, control=control) as host:
        for call in (host.repository.load("tiny"), host.repository.unload("tiny")):
            with pytest.raises(BadRequest, match="--model-control explicit"):
                await call
        assert host.begun == 0


async def test_a_failing_model_is_unloaded_while_another_is_tried(artifacts: Path) -> None:
    """An unload between the trials of two failing models ends neither the trial that runs nor the next."""
    copy_model(artifacts, "b")
    async with host_of(artifacts, control=EXPLICIT) as host:
        await host.repository.start(["tiny", "b"])
        for name in ("tiny", "b"):
            await host.fail(name)
        host.engine("tiny").gate.clear()
        recovering = asyncio.create_task(host.repository.recover())
        await reached(lambda: host.engine("tiny").running == 1)
        await host.repository.unload("b")
        host.open_gates()
        await recovering
        assert (host.ready(), host.repository.loaded) == (True, ("tiny",))


async def test_the_end_during_a_replacement(artifacts: Path) -> None:
    """A repository that closes while a version loads and another waits for its requests closes every engine once."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny"])
        running = await host.busy("tiny")
        for number in (2, 3):
            copy_version(artifacts, number)
            if number == 3:
                host.gate.clear()
            replacing = asyncio.create_task(host.repository.replace("tiny"))
            await reached(partial(lambda count: host.begun == count, number))
        closing = asyncio.create_task(host.repository.aclose(60))
        await settle()
        host.open_gates()
        [end] = await asyncio.gather(replacing, return_exceptions=True)
        assert isinstance(end, ShuttingDown)
        await closing
        assert await running == 7
        with pytest.raises(TopfiveError):
            await host.repository.replace("tiny")
