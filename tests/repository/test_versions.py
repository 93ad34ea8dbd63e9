"""Versions of a model side by side: the one that is asked for answers, or it is an error."""

import asyncio
from pathlib import Path

import pytest

from service.common.errors import ModelNotFound, NotReady
from service.common.model_info import ModelState
from service.engines.base import CPU
from service.repository.model_info import model_detail
from tests.exposition import exposition
from tests.fakes import reached
from tests.fleet import copy_version
from tests.repository.host import host_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def three(artifacts: Path) -> Path:
    """A folder that holds `tiny` in versions 1, 2 and 3."""
    for version in (2, 3):
        copy_version(artifacts, version)
    return artifacts


async def test_the_version_that_is_asked_for_is_loaded_beside_others(three: Path) -> None:
    """Each version has an engine of its own, the newest answers without a version, and no version is loaded twice."""
    async with host_of(three) as host:
        asked = [await host.repository.get("tiny", version=version) for version in (1, None, 3, 2, 1)]
        assert [model.card.version for model in asked] == [1, 3, 3, 2, 1]
        assert host.open == ["tiny"] * 3
        assert host.repository.loaded == ("tiny",)
        for version in "123":
            assert f'topfive_healthy{{model="tiny",version="{version}"}} 1.0' in exposition(host.metrics)


async def test_requests_of_one_moment_load_each_version_once(three: Path) -> None:
    """Requests for the newest version by its number and without it share its engine, as they come at once."""
    async with host_of(three) as host:
        asked = [host.repository.get("tiny", version=version) for version in (None, 3, 2, None, 3)]
        assert [model.card.version for model in await asyncio.gather(*asked)] == [3, 3, 2, 3, 3]
        assert host.begun == 2


@pytest.mark.parametrize("version", [0, 4, -1, 1 << 64])
async def test_an_absent_version_names_those_that_are_there(three: Path, version: int) -> None:
    """A version that is not exported is not found, and no other answers for it."""
    async with host_of(three) as host:
        with pytest.raises(ModelNotFound, match=rf"tiny has no version {version}; .* 1, 2, 3"):
            await host.repository.get("tiny", version=version)
        assert host.begun == 0
        with pytest.raises(ModelNotFound, match=f"no version {version}"):
            host.repository.entry("tiny", version)
        with pytest.raises(ModelNotFound, match="not exported"):
            await host.repository.get("googlenet", version=1)


async def test_a_damaged_version_has_no_stand_in(three: Path) -> None:
    """A damaged version that is asked for is an error, where without a version the one before it answers."""
    (three / "tiny" / "3" / "model.onnx").write_bytes(b"damaged")
    async with host_of(three) as host:
        with pytest.raises(NotReady, match=r"tiny cannot be loaded: .*sha256"):
            await host.repository.get("tiny", version=3)
        assert (await host.repository.get("tiny")).card.version == 2


async def test_each_version_is_described(three: Path) -> None:
    """A model's page lists its versions; that of a version has its own manifest and state."""
    async with host_of(three) as host:
        await host.repository.get("tiny", version=1)
        known = {version: model_detail(host.repository.entry("tiny", version)) for version in (None, 1, 2)}
        assert [one.version for one in known.values()] == [3, 1, 2]
        assert known[2].paper == "version 2"
        assert {one.versions for one in known.values()} == {(1, 2, 3)}
        assert [one.state for one in known.values()] == [ModelState.EXPORTED, ModelState.READY, ModelState.EXPORTED]


async def test_versions_are_evicted_one_by_one(three: Path) -> None:
    """Memory is counted for each version: the least recently used goes, the configured model's own never does."""
    async with host_of(three, {CPU: 2}) as host:
        await host.repository.start(["tiny"])
        for version in (1, 2, 1):
            assert await host.classify("tiny", 7, version) == 7
        assert [engine.closed for engine in host.engines] == [False, True, True, False]
        assert (await host.repository.get("tiny")).card.version == 3
        assert host.ready()


async def test_an_eviction_leaves_no_name_behind(three: Path) -> None:
    """After the eviction of the version that answered without a number, the newest is loaded again."""
    async with host_of(three, {CPU: 1}) as host:
        for version in (None, 1, None):
            await host.classify("tiny", 7, version)
        assert host.open == ["tiny"]
        assert (await host.repository.get("tiny")).card.version == 3


async def test_a_version_in_use_keeps_its_requests(three: Path) -> None:
    """A request in flight on one version is answered by it while another version takes its room."""
    async with host_of(three, {CPU: 1}) as host:
        first = await host.busy("tiny")
        other = asyncio.create_task(host.classify("tiny", 9, 1))
        await reached(lambda: host.repository.loaded == ())
        host.open_gates()
        assert (await first, await other) == (7, 9)
