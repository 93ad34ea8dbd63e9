"""Models that lie in folders of their own: whatever the folder looks like, the model is served under the name given."""

import asyncio
import shutil
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, LABELS, MANIFEST
from models.catalog import CATALOG
from service.common.errors import NotReady
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.types import BatchLimits
from service.engines.base import CPU
from service.repository.device_memory import Device
from service.repository.exported import ExportedModels
from service.repository.model_folders import ModelFolders
from service.repository.model_info import model_detail, model_layers
from service.repository.repository import Repository
from tests.fakes import FakeEngine, ManualClock, Opener, reached
from tests.fleet import copy_version
from tests.onnx_models import classifier, recipe, saved
from tests.serving import serving

pytestmark = pytest.mark.anyio


def repository_of(root: Path, folders: dict[str, Path]) -> Repository:
    """A repository on fake engines."""
    return Repository(
        ExportedModels(root, CATALOG, ModelFolders(folders)),
        lambda: [Device(CPU, Opener(lambda _artifact: FakeEngine()))],
        limits=lambda engine: BatchLimits(engine.slots, engine.max_batch),
        clock=ManualClock(),
        metrics=Metrics(),
    )


@pytest.mark.parametrize(
    ("below", "versions"), [("tiny/2", (2,)), ("flat", (1,)), ("tiny", (1, 2)), ("", (1, 2)), ("several", (1, 2))]
)
async def test_a_folder_of_any_depth(artifacts: Path, below: str, versions: tuple[int, ...]) -> None:
    """A version, its files alone, a model and a tree are served under another name, with layers and page."""
    copy_version(artifacts, 2)
    if below == "flat":
        shutil.copytree(artifacts / "tiny" / "2", artifacts / "flat")
    if below == "several":
        shutil.copytree(artifacts / "tiny", artifacts / "several" / "mine")
        shutil.copytree(artifacts / "tiny", artifacts / "several" / "other")
    repository = repository_of(artifacts.parent / "none", {"mine": artifacts / below})
    try:
        await repository.start(["mine"])
        model = await repository.get("mine")
        assert (model.name, model.card.name, model.card.version) == ("mine", "mine", versions[-1])
        known = model_detail(repository.entry("mine"))
        assert (known.name, known.versions, known.family) == ("mine", versions, "tiny")
        assert "mine has untrained weights" in known.warnings[0]
        assert model_layers(repository.entry("mine"), repository.root_of("mine")).model == "mine"
        root = repository.root_of("mine")
        assert (root / "mine").exists()
    finally:
        await repository.aclose(0)
    assert not root.exists()


async def test_models_of_both_kinds_are_served_together(artifacts: Path) -> None:
    """A model of a folder of its own comes before one of that name in the folder of artifacts, where others stay."""
    shutil.copytree(artifacts / "tiny", artifacts.parent / "other")
    async with serving(
        artifacts, FakeEngine(), model=f"tiny={artifacts.parent}/other,twin={artifacts}/tiny"
    ) as running:
        names = [model["name"] for model in (await running.rest("/models"))["models"] if model["state"] == "ready"]
        assert sorted(names) == ["tiny", "twin"]
        assert running.data_plane.repository.root_of("tiny") != artifacts
        assert running.data_plane.repository.root_of("googlenet") == artifacts


async def test_a_linked_model_is_replaced(artifacts: Path) -> None:
    """A new version in the folder of the model takes over, as in the folder of artifacts."""
    repository = repository_of(artifacts.parent / "none", {"mine": artifacts / "tiny"})
    try:
        await repository.start(["mine"])
        before = repository.signature("mine")
        copy_version(artifacts, 2)
        assert repository.signature("mine") != before
        assert (await repository.replace("mine")).card.version == 2
    finally:
        await repository.aclose(0)


@pytest.mark.parametrize("missing", ["folder", "recipe", "graph", "one of two"])
async def test_a_folder_without_a_model_is_named(artifacts: Path, tmp_path: Path, missing: str) -> None:
    """A folder that holds no artifact, not all of what an import needs, or two models, stops the start by name."""
    folder = tmp_path / "models"
    if missing != "folder":
        folder.mkdir()
    if missing == "recipe":
        saved(classifier(), folder, GRAPH)
    if missing == "graph":
        recipe(folder)
    if missing == "one of two":
        for name in "ab":
            shutil.copytree(artifacts / "tiny", folder / name)
    repository = repository_of(artifacts, {"mine": folder})
    try:
        with pytest.raises(NotReady, match="a, b; name the folder of one" if missing == "one of two" else MANIFEST):
            await repository.start(["mine"])
    finally:
        await repository.aclose(0)


async def test_a_damaged_artifact_is_named_where_it_lies(artifacts: Path) -> None:
    """The error of a damaged file says what to do, and no command that would write into the links."""
    (artifacts / "tiny" / "1" / GRAPH).write_bytes(b"damaged")
    repository = repository_of(artifacts, {"mine": artifacts / "tiny" / "1"})
    try:
        with pytest.raises(NotReady, match=rf"{artifacts}/tiny/1/{GRAPH} differs .*; put a whole artifact there"):
            await repository.start(["mine"])
    finally:
        await repository.aclose(0)


async def test_an_onnx_file_is_imported_at_the_start(tmp_path: Path) -> None:
    """A folder with a file, its recipe and labels is imported, checked and served, and is not written to."""
    folder = tmp_path / "models"
    folder.mkdir()
    saved(classifier(), folder, GRAPH)
    recipe(folder)
    (folder / "labels.txt").write_text("rose\ntulip\ndaisy\nlily\n")
    before = sorted(path.name for path in folder.iterdir())
    async with serving(tmp_path / "none", model=f"flowers={folder}", models=()) as running:
        reply = await running.rest("/models/flowers")
        assert (reply["state"], reply["classes"], reply["version"]) == ("ready", 4, 1)
        layers = await running.rest("/models/flowers/layers")
        assert layers["model"] == "flowers"
        root = running.data_plane.repository.root_of("flowers")
        assert "tulip" in (root / "flowers" / "1" / LABELS).read_text()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not root.exists()


async def test_a_failed_import_stops_the_start_with_its_reason(tmp_path: Path) -> None:
    """What the import says of a wrong recipe is the error of the start."""
    saved(classifier(), tmp_path, GRAPH)
    recipe(tmp_path, "colours = 3")
    repository = repository_of(tmp_path, {"flowers": tmp_path})
    try:
        with pytest.raises(NotReady, match=r"cannot be imported for --model flowers: .*colours"):
            await repository.start(["flowers"])
    finally:
        await repository.aclose(0)


@pytest.mark.parametrize("turns", [1, 3, 30, 300])
async def test_the_end_does_not_wait_for_an_import(tmp_path: Path, turns: int) -> None:
    """A repository that closes while a file is imported ends the import and removes what there is of it."""
    saved(classifier(), tmp_path, GRAPH)
    recipe(tmp_path)
    folders = ModelFolders({"flowers": tmp_path})
    linking = asyncio.create_task(folders.link())
    await reached(lambda: folders.root_of("flowers") is not None)
    for _ in range(turns):
        await asyncio.sleep(0)
    folders.close()
    with pytest.raises(NotReady, match="cannot be imported"):
        await asyncio.wait_for(linking, 10)


def test_settings() -> None:
    """A model with a folder is loaded before those of --models; one without a folder counts as one of these."""
    given = Settings.model_validate({"model": ("mine=/mnt/models", "b=~/b"), "models": "googlenet,b"})
    assert given.models == ("mine", "b", "googlenet")
    assert given.model_folders == {"mine": Path("/mnt/models"), "b": Path.home() / "b"}
    alone = Settings.model_validate({"model": "googlenet"})
    assert (alone.models, alone.model_folders) == (("googlenet",), {})
    for wrong in ("../x=/mnt/models", "/mnt/models", "ensemble:a+b=/mnt/models", "=/mnt/models"):
        with pytest.raises(ValueError, match="model"):
            Settings.model_validate({"model": wrong})
