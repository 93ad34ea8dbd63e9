"""`topfive predict`: its table and its JSON."""

import json
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from tests.command_line import topfive
from tests.download_host import Host, whole


def test_table(artifacts: Path) -> None:
    """The table has five classes, the model with its size, and the warning of untrained weights."""
    result = topfive("predict", PHOTOS / "bee.jpeg", "--model", "tiny", "--artifacts", artifacts)

    assert result.exit_code == 0
    assert "tiny v1 (untrained)" in result.output
    assert "20,752 parameters, 182 k MACs" in result.output
    assert result.output.count("mean nothing") == 1
    assert [line.split()[0] for line in result.output.splitlines() if " n0" in line] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("columns", [30, 40, 60, 75, 120])
def test_narrow_terminal(artifacts: Path, columns: int) -> None:
    """A narrow terminal cuts off no class and no probability."""
    words = ("predict", PHOTOS / "bee.jpeg", "--model", "tiny", "--artifacts", artifacts, "--top-k", "1")
    [best] = json.loads(topfive(*words, "--json").stdout)["predictions"]
    text = " ".join(topfive(*words, columns=columns).output.split())

    assert best["label"].split()[0] in text
    assert f"{best['probability']:.4f}" in text
    assert "…" not in text


def test_json(artifacts: Path, tmp_path: Path) -> None:
    """--json prints an object for each image; an image without an answer is an error, and the status is 1."""
    bad = tmp_path / "cat[0].jpg"
    bad.write_text("not a cat")
    photos = [PHOTOS / "bee.jpeg", bad, tmp_path / "none.png", PHOTOS / "snail.jpeg"]
    result = topfive("predict", *photos, "--model", "tiny", "--artifacts", artifacts, "--json", "--top-k", "3")

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [row["image"] for row in rows] == [str(photos[0]), str(photos[3])]
    assert all(len(row["predictions"]) == 3 for row in rows)
    assert "cat[0].jpg: not an image" in result.stderr.replace("\n", "")
    assert "No such file" in result.stderr


@pytest.mark.parametrize("command", ["predict", "compare"])
def test_urls(artifacts: Path, host: Host, command: str) -> None:
    """A photo may be a URL; one that is not there, no image or too large is an error that says so."""
    bee = (PHOTOS / "bee.jpeg").read_bytes()
    urls = [host.serve("bee.jpeg", whole(bee)), f"{host.url}none", host.serve("page", whole(b"<html>a page</html>"))]
    large = host.serve("large", whole(bee + bytes(1)))
    options = ("--model", "tiny", "--artifacts", artifacts, "--json", "--max-image-bytes", len(bee))
    result = topfive(command, *urls, large, PHOTOS / "bee.jpeg", *options)

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [row["image"] for row in rows] == [urls[0], str(PHOTOS / "bee.jpeg")]
    assert f"{urls[1]}: the host answered 404" in result.stderr
    assert f"{urls[2]}: this is HTML, a web page" in result.stderr
    assert f"{large}: it has more than {len(bee):,} bytes" in result.stderr
