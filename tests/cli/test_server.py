"""`topfive predict` and `compare` with `--server`: a running server answers."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import Result

from export.gate_images import PHOTOS
from tests.command_line import topfive
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.keys import write_keys
from tests.serving import Running, comparable, serving

pytestmark = pytest.mark.anyio

BEE = PHOTOS / "bee.jpeg"


@pytest.fixture
async def pair(artifacts: Path) -> AsyncIterator[Running]:
    """A server of `tiny` and `twin` on a real engine, under the prefix /vision."""
    copy_model(artifacts, "twin")
    async with serving(artifacts, models=("tiny", "twin"), root_path="/vision") as running:
        yield running


async def ask(running: Running, command: str, *words: object, columns: int = 100) -> Result:
    """The result of the command with the URL of that server."""
    return await asyncio.to_thread(topfive, command, *words, "--server", url(running), columns=columns)


def url(running: Running) -> str:
    """The address of the server's REST."""
    return f"http://127.0.0.1:{running.service.rest.port}"


async def test_predict(pair: Running, artifacts: Path) -> None:
    """The server's answer has the form of an answer of this process, in JSON and as a table."""
    words = ("predict", BEE, "--top-k", "3", "--crops", "10", "--model", "twin")
    served = await ask(pair, *words, "--json")
    local = await asyncio.to_thread(topfive, *words, "--json", "--artifacts", artifacts)
    table = await ask(pair, "predict", BEE, columns=80)

    assert served.exit_code == table.exit_code == 0, served.output + table.output
    assert comparable(json.loads(served.stdout)) == comparable(json.loads(local.stdout))
    assert json.loads(served.stdout).keys() == json.loads(local.stdout).keys()
    assert "tiny v1 (untrained)" in table.stdout


async def test_compare(pair: Running, artifacts: Path) -> None:
    """A comparison by a server has the form of one of this process; a row without an answer has the server's error."""
    words = ("compare", BEE, "--model", "twin,nobody", "--json")
    served = await ask(pair, *words)
    local = await asyncio.to_thread(topfive, *words, "--artifacts", artifacts)
    loaded = await ask(pair, "compare", BEE, "--json")

    assert served.exit_code == local.exit_code == 1
    assert comparable(json.loads(served.stdout)) == comparable(json.loads(local.stdout))
    assert json.loads(served.stdout)["rows"][1]["error"]["code"] == "model_not_found"
    assert loaded.exit_code == 0
    assert [row["model"] for row in json.loads(loaded.stdout)["rows"]] == ["tiny", "twin"]


async def test_prefix(pair: Running) -> None:
    """A URL may have a path prefix, and end with a slash."""
    result = await asyncio.to_thread(topfive, "predict", BEE, "--json", "--server", f"{url(pair)}/vision/")
    wrong = await asyncio.to_thread(topfive, "predict", BEE, "--server", f"{url(pair)}/other")

    assert result.exit_code == 0, result.output
    assert wrong.exit_code == 1
    assert "the server answered 404: Not Found: POST /vision/other/predict" in wrong.stderr


async def test_errors(pair: Running, tmp_path: Path) -> None:
    """An error of one image is told in the words of the server with its status, and the others have answers."""
    bad = tmp_path / "cat[0].jpg"
    bad.write_text("not a cat")
    result = await ask(pair, "predict", bad, tmp_path / "none.png", BEE, "--json")

    assert result.exit_code == 1
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(BEE)]
    assert "cat[0].jpg: the server answered 422: not an image" in result.stderr
    assert "none.png: No such file" in result.stderr


async def test_keys(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets the key of --api-key or of its variable; without one its refusal is told."""
    keys = write_keys(tmp_path / "keys.toml", web={})
    async with serving(exported, FakeEngine(), api_keys_file=keys) as running:
        refused = await ask(running, "predict", BEE)
        monkeypatch.setenv("TOPFIVE_API_KEY", "web-key")
        allowed = await ask(running, "predict", BEE)
        wrong = await ask(running, "predict", BEE, "--api-key", "other")

    assert (refused.exit_code, allowed.exit_code, wrong.exit_code) == (1, 0, 1)
    assert "the server answered 401" in refused.stderr
    assert "the server answered 401" in wrong.stderr


@pytest.mark.parametrize("command", ["predict", "compare"])
async def test_no_server(command: str) -> None:
    """Where nothing listens this is said once, whatever the number of images."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = await asyncio.to_thread(topfive, command, BEE, BEE, "--server", f"http://127.0.0.1:{port}")

    assert result.exit_code == 1
    assert result.stderr == f"error: http://127.0.0.1:{port}: no connection: Connection refused\n"


async def test_usage() -> None:
    """What is no URL of a server, and options of models in this process, are usage errors."""
    host = topfive("predict", BEE, "--server", "localhost:8000")
    engine = topfive("compare", BEE, "--server", "http://localhost:1", "--precision", "f32")

    assert (host.exit_code, engine.exit_code) == (2, 2)
    assert "it is such as http://localhost:8000" in " ".join(host.stderr.split())
    assert "without --precision" in engine.stderr
