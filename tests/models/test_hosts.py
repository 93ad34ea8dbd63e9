"""Whether the hosts of weights answer."""

import socket
import time
from contextlib import closing

import pytest

from models.catalog import CATALOG
from models.weights.hosts import TORCHVISION, silent, unreachable
from tests.download_host import Host, not_http


def test_silent() -> None:
    """Any answer of HTTP is one; a closed port, a server of another kind and one that says nothing have a reason."""
    with closing(Host()) as host, socket.create_server(("127.0.0.1", 0)) as mute:
        other = host.serve("other", not_http)
        assert silent(host.url) == ""
        waiting = silent(f"http://127.0.0.1:{mute.getsockname()[1]}/", timeout_s=0.2)
        assert waiting in ("timed out", "no answer within 0.2 s")
    assert "refused" in silent(other)
    assert "unknown url type" in silent("nonsense")


def test_no_torch_is_needed_to_know_that_nothing_is_downloaded() -> None:
    """Weights that come with topfive, and networks without published weights, need no host."""
    began = time.monotonic()
    assert unreachable(CATALOG["lenet5"], None) == unreachable(CATALOG["vgg16_c"], None) == ""
    assert time.monotonic() - began < 0.1


@pytest.mark.parametrize(("name", "hosts"), [("googlenet", [TORCHVISION]), ("googlenet_2014", ["github", "hugging"])])
def test_all_hosts_are_asked(monkeypatch: pytest.MonkeyPatch, name: str, hosts: list[str]) -> None:
    """A model is unreachable only if no host of its weights answers; a mirror is asked instead of them."""
    monkeypatch.setattr("models.weights.hosts.silent", lambda url: "no route")
    reason = unreachable(CATALOG[name], None)
    assert [one for one in hosts if one not in reason] == []
    assert unreachable(CATALOG[name], "http://mirror.example/") == "http://mirror.example/ cannot be reached: no route"
    monkeypatch.setattr("models.weights.hosts.silent", lambda url: "" if hosts[-1] in url else "no route")
    assert unreachable(CATALOG[name], None) == ""
