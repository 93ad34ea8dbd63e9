"""The set of models: loaded once, reported truly, recovered and closed."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, MANIFEST, NotExportedError
from models.catalog import CATALOG
from service.batching.batcher import BatcherState
from service.common.errors import ModelNotFound, NotReady, ShuttingDown, TopfiveError
from service.common.metrics import Metrics, ModelMetrics
from service.common.model_info import ModelState
from service.common.statistics import VersionCounters
from service.engines.base import EngineUnavailableError
from service.repository.loaded_model import LoadedModel
from service.repository.model_info import model_detail, model_layers
from tests.exposition import exposition
from tests.fakes import reached, settle
from tests.repository.host import NAMES, Host, host_of

pytestmark = pytest.mark.anyio

UNREADABLE = Path("/proc/self/mem")  # a regular file whose first bytes nobody can read


async def loading(host: Host, count: int) -> list[asyncio.Task[LoadedModel]]:
    """So many requests for `tiny`, whose engine is being opened until the gate is set."""
    host.gate.clear()
    tasks = [asyncio.create_task(host.repository.get("tiny")) for _ in range(count)]
    await reached(lambda: host.begun == 1)
    return tasks


# --- loading ---


async def test_many_requests_share_one_load(exported: Path) -> None:
    """Twenty requests for a model that is not loaded open one engine and get the same model, as does a later one."""
    async with host_of(exported) as host:
        models = await asyncio.gather(*(host.repository.get("tiny") for _ in range(20)))
        models.append(await host.repository.get("tiny"))
        assert len({id(model) for model in models}) == 1
        assert host.begun == 1


@pytest.mark.parametrize("others", [0, 1])
async def test_a_request_that_leaves_does_not_stop_the_load(exported: Path, others: int) -> None:
    """A load goes on when the request that began it leaves, even as the only one; other requests get its model."""
    async with host_of(exported) as host:
        first, *waiting = await loading(host, 1 + others)
        first.cancel()
        await settle()
        assert first.cancelled()
        host.gate.set()
        for model in [*await asyncio.gather(*waiting), await host.repository.get("tiny")]:
            assert model.name == "tiny"
        assert host.begun == 1


@pytest.mark.parametrize("error", [EngineUnavailableError("no such device"), ValueError("a bad graph"), MemoryError()])
async def test_a_failed_load_is_not_ready_and_tried_again(exported: Path, error: Exception) -> None:
    """Every request that waits for a failed load is told its cause; the next request begins another load."""
    async with host_of(exported) as host:
        host.refuses = {"tiny cpu": [error]}
        ends = await asyncio.gather(*(host.repository.get("tiny") for _ in range(3)), return_exceptions=True)
        for end in ends:
            assert isinstance(end, NotReady)
            assert "tiny cannot be loaded" in end.detail
            assert str(error) in end.detail
        assert host.begun == 1
        assert host.entry("tiny").state is ModelState.EXPORTED
        assert await host.classify("tiny", 7) == 7
        assert host.begun == 2


async def test_a_model_that_is_not_exported_names_the_command(exported: Path, tmp_path: Path) -> None:
    """A model of the catalog that is not exported is refused with the command to export it, without any folder too."""
    for root in (exported, tmp_path / "none"):
        async with host_of(root) as host:
            with pytest.raises(ModelNotFound, match="topfive export googlenet") as missing:
                await host.repository.get("googlenet")
            assert isinstance(missing.value.__cause__, NotExportedError)
            assert host.begun == 0
            assert host.entry("googlenet").state is ModelState.NOT_EXPORTED


@pytest.mark.parametrize(("name", "nearest"), [("tinny", "tiny"), ("GoogLeNet", "googlenet"), ("mine1", "mine")])
async def test_an_unknown_model_names_the_nearest(artifacts: Path, name: str, nearest: str) -> None:
    """A name that no model has is refused with the nearest names of the catalog and of other exported models."""
    shutil.copytree(artifacts / "tiny", artifacts / "mine")
    async with host_of(artifacts) as host:
        with pytest.raises(ModelNotFound, match=f"did you mean .*{nearest}"):
            await host.repository.get(name)
        with pytest.raises(ModelNotFound, match=f"did you mean .*{nearest}"):
            host.repository.entry(name)


@pytest.mark.parametrize("name", ["", "..", "../artifacts/tiny", "tiny/1", "/etc", "a\0b", "x" * 5000])
async def test_a_name_is_never_a_path(exported: Path, name: str) -> None:
    """Whatever a client sends as a name, no file is opened by it."""
    async with host_of(exported) as host:
        with pytest.raises(ModelNotFound):
            await host.repository.get(name)


async def test_a_damaged_graph_is_not_ready_until_it_is_repaired(artifacts: Path) -> None:
    """A graph that is changed or missing is refused by name before any engine is opened; once repaired it serves."""
    graph = artifacts / "tiny" / "1" / GRAPH
    whole = graph.read_bytes()
    async with host_of(artifacts) as host:
        graph.write_bytes(whole[:-1] + b"?")
        with pytest.raises(NotReady, match=GRAPH):
            await host.repository.get("tiny")
        graph.unlink()
        with pytest.raises(NotReady, match=GRAPH):
            await host.repository.get("tiny")
        assert host.begun == 0
        graph.write_bytes(whole)
        assert await host.classify("tiny", 7) == 7


@pytest.mark.parametrize("content", ["{", "{}"])
async def test_a_damaged_manifest_is_told_and_not_passed_off_as_absence(artifacts: Path, content: str) -> None:
    """A model whose manifest cannot be read is refused and listed with the reason; one that is absent has no reason."""
    (artifacts / "tiny" / "1" / MANIFEST).write_text(content)
    async with host_of(artifacts) as host:
        damaged, absent = host.entry("tiny"), host.entry("vgg16")

        assert (damaged.state, absent.state) == (ModelState.NOT_EXPORTED, ModelState.NOT_EXPORTED)
        assert damaged.exported is None
        assert damaged.damage is not None
        assert "run: topfive export tiny" in damaged.damage
        assert model_detail(damaged).warnings == (damaged.damage,)
        assert (absent.damage, model_detail(absent).warnings) == (None, ())
        with pytest.raises(NotReady, match="topfive export tiny"):
            model_layers(damaged, artifacts)
        with pytest.raises(NotReady, match=MANIFEST):
            await host.repository.get("tiny")
        with pytest.raises(ModelNotFound, match="vgg16 is not exported yet"):
            model_layers(absent, artifacts)


@pytest.mark.parametrize("file", [GRAPH, MANIFEST])
async def test_a_damaged_newest_version_leaves_the_one_before(
    artifacts: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest whole version serves; /models, the log and a metric tell that a newer one is damaged."""
    shutil.copytree(artifacts / "tiny" / "1", artifacts / "tiny" / "2")
    (artifacts / "tiny" / "2" / file).write_bytes(b"damaged")
    async with host_of(artifacts) as host:
        if file == MANIFEST:  # the list reads no other file
            known = model_detail(host.entry("tiny"))
            assert (known.version, known.state) == (1, ModelState.EXPORTED)
            assert f"2/{file}" in known.warnings[-1]
        caplog.clear()
        assert await host.classify("tiny", 7) == 7
        known = model_detail(host.entry("tiny"))
        assert known.version == 1
        assert "version 1 serves, because a newer one is damaged" in known.warnings[-1]
        assert f"2/{file}" in known.warnings[-1]
        assert caplog.messages.count(known.warnings[-1]) == 1
        assert b'topfive_damaged_versions{model="tiny",version="1"} 1.0' in await host.metrics.scrape()


@pytest.mark.skipif(not UNREADABLE.is_file(), reason="needs Linux")
async def test_a_file_that_the_disk_does_not_give_is_not_ready(artifacts: Path) -> None:
    """An error of the operating system while a model is read is an answer, at the start too."""
    graph = artifacts / "tiny" / "1" / GRAPH
    graph.unlink()
    graph.symlink_to(UNREADABLE)
    async with host_of(artifacts) as host:
        with pytest.raises(NotReady, match="tiny cannot be loaded"):
            await host.repository.start(["tiny"])


async def test_the_newest_version_is_loaded(artifacts: Path) -> None:
    """Of versions 1, 9 and 10 the tenth is served, not the one that sorts last as text."""
    for version in ("9", "10"):
        shutil.copytree(artifacts / "tiny" / "1", artifacts / "tiny" / version)
    async with host_of(artifacts) as host:
        assert (await host.repository.get("tiny")).card.version == 10


# --- readiness ---


async def test_ready_once_every_configured_model_is_loaded(five: Path) -> None:
    """The repository is ready once every configured model is loaded, and tells listeners; the first is the default."""
    async with host_of(five) as host:
        assert not host.ready()
        host.gate.clear()
        starting = asyncio.create_task(host.repository.start(["b", "tiny"]))
        await reached(lambda: host.begun == 1)
        assert not host.ready()
        assert host.repository.default == "b"
        host.gate.set()
        await starting
        assert host.ready()
        assert host.changes == [False, True]
        assert host.alive()


async def test_a_start_that_fails_raises_and_is_not_ready(exported: Path) -> None:
    """A configured model that is not exported stops the start with the command to export it."""
    async with host_of(exported) as host:
        with pytest.raises(ModelNotFound, match="topfive export alexnet"):
            await host.repository.start(["tiny", "alexnet"])
        assert not host.ready()


async def test_readiness_follows_the_last_real_runs(exported: Path) -> None:
    """Three failed batches turn readiness off, one good batch turns it on, and listeners hear both."""
    async with host_of(exported) as host:
        await host.repository.start(["tiny"])
        await host.fail("tiny")
        assert not host.ready()
        assert host.entry("tiny").state is ModelState.FAILING
        assert host.alive()
        await host.classify("tiny")
        assert host.ready()
        assert host.changes == [True, False, True]


async def test_a_failing_model_that_is_not_configured_does_not_count(five: Path) -> None:
    """Only configured models decide about readiness."""
    async with host_of(five) as host:
        await host.classify("b")
        await host.repository.start(["tiny"])
        await host.fail("b")
        assert host.entry("b").state is ModelState.FAILING
        assert host.ready()


async def test_recover_brings_readiness_back_without_traffic(exported: Path) -> None:
    """A failing model is tried with one blank image, and is ready again once that runs; a healthy one is not tried."""
    async with host_of(exported) as host:
        await host.repository.start(["tiny"])
        [engine] = host.engines
        await host.repository.recover()
        assert engine.batches == []
        await host.fail("tiny", times=4)
        engine.script = [RuntimeError("still no device")]
        await host.repository.recover()
        assert not host.ready()
        await host.repository.recover()
        assert host.ready()
        assert engine.batches == [1] * 6


async def test_a_broken_queue_is_not_alive(exported: Path) -> None:
    """A bug in a batcher, which no request can heal, shows in liveness, so that a supervisor restarts the process."""

    class FaultyModelMetrics(ModelMetrics):
        def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
            raise ZeroDivisionError("a bug")

    class FaultyMetrics(Metrics):
        def for_model(self, model: str, version: int) -> ModelMetrics:
            return FaultyModelMetrics(self, VersionCounters(model, version))

    async with host_of(exported, metrics=FaultyMetrics()) as host:
        await host.repository.start(["tiny"])
        assert host.alive()
        with pytest.raises(TopfiveError):
            await host.classify("tiny")
        assert (await host.repository.get("tiny")).batcher.state is BatcherState.BROKEN
        assert not host.alive()
        assert not host.ready()
        await host.repository.recover()
        assert not host.ready()


# --- reports ---


async def test_entries_are_the_catalog_and_other_exported_models(five: Path) -> None:
    """Every model of the catalog and every other exported model is listed by name, with its state and what is known."""
    async with host_of(five) as host:
        entries = host.repository.entries()
        assert [entry.name for entry in entries] == sorted({*CATALOG.names(), *NAMES})
        assert {entry.name for entry in entries if entry.state is ModelState.EXPORTED} == {*NAMES, "squeezenet1_1"}
        assert {entry.state for entry in entries} == {ModelState.EXPORTED, ModelState.NOT_EXPORTED}
        b, tiny, googlenet = (host.repository.entry(name) for name in ("b", "tiny", "googlenet"))
        assert b.architecture is None
        assert b.exported is not None
        assert tiny.architecture is CATALOG["tiny"]
        assert googlenet.exported is None


async def test_an_entry_shows_its_way_to_ready(exported: Path) -> None:
    """A model is listed as exported, then as loading, then as ready."""
    async with host_of(exported) as host:
        assert host.entry("tiny").state is ModelState.EXPORTED
        [task] = await loading(host, 1)
        assert host.entry("tiny").state is ModelState.LOADING
        host.gate.set()
        model = await task
        entry = host.entry("tiny")
        assert (entry.state, entry.loaded) == (ModelState.READY, model)


async def test_loaded_models_show_in_the_metrics(exported: Path) -> None:
    """A loaded model, and no other, has its queue, batches in flight, places taken, largest batch and health shown."""
    async with host_of(exported) as host:
        running = await host.busy("tiny")
        tasks = [asyncio.create_task(host.classify("tiny")) for _ in range(2)]
        await settle()
        text = exposition(host.metrics)
        for line in ("queue_depth 2", "in_flight 1", "admitted 3", "max_batch 8", "healthy 1"):
            gauge, value = line.split()
            assert f'topfive_{gauge}{{model="tiny",version="1"}} {value}.0' in text
        assert 'nv_inference_pending_request_count{model="tiny",version="1"} 2.0' in text
        assert "googlenet" not in text
        host.open_gates()
        await asyncio.gather(running, *tasks)


# --- the end ---


async def test_stopping_is_not_ready_and_loads_nothing_new(five: Path) -> None:
    """A stopping repository is not ready and loads nothing; what is loaded answers until it is closed."""
    async with host_of(five) as host:
        await host.repository.start(["tiny"])
        host.repository.stop()
        assert not host.ready()
        assert host.changes[-1] is False
        assert await host.classify("tiny", 3) == 3
        with pytest.raises(ShuttingDown):
            await host.repository.get("b")


async def test_closing_answers_first_and_closes_every_engine(five: Path) -> None:
    """Accepted images of two models are answered, then both engines are closed, and nothing is loaded any more."""
    async with host_of(five) as host:
        host.slots = 2  # one for each
        running = [await host.busy(name) for name in ("tiny", "b")]
        closing = asyncio.create_task(host.repository.aclose(60))
        await settle()
        assert not closing.done()
        assert host.open == ["tiny", "b"]
        host.open_gates()
        await closing
        assert await asyncio.gather(*running) == [7, 7]
        assert host.open == []
        with pytest.raises(ShuttingDown):
            await host.repository.get("tiny")
        await host.repository.aclose(60)


async def test_closing_during_a_load_tells_those_who_wait(exported: Path) -> None:
    """Requests that wait for a load at the end are told ShuttingDown, and an engine that comes late is closed."""
    async with host_of(exported) as host:
        waiting = await loading(host, 2)
        await host.repository.aclose(60)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, ShuttingDown) for end in ends)
        host.gate.set()
        await reached(lambda: [engine.closed for engine in host.engines] == [True])
        with pytest.raises(ShuttingDown):
            await host.repository.get("tiny")


@pytest.mark.parametrize("turns", range(8))
async def test_closing_just_as_a_load_ends_closes_its_engine(exported: Path, turns: int) -> None:
    """An engine that was opened in the turn in which the repository closes is not left open, whatever the turn."""
    async with host_of(exported) as host:
        task = asyncio.create_task(host.repository.get("tiny"))
        while not host.engines:  # noqa: ASYNC110 - it is the very next turn that matters
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        await host.repository.aclose(60)
        [end] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(end, LoadedModel | ShuttingDown)
        [engine] = host.engines
        await reached(lambda: engine.closed)
