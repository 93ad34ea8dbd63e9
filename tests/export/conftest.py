"""Fixtures of exports: no downloads of the user, and a host that does not answer."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="session", autouse=True)
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Downloads go to an empty cache, and past any proxy."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("torch")
        patch.setenv("TORCH_HOME", str(home))
        patch.setenv("no_proxy", "*")
        yield home


@pytest.fixture(scope="session")
def unreachable() -> Iterator[str]:
    """The address of a local port that is bound and not listening, so that connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
