"""The soak test for a few seconds: a service lets go of everything, and one that leaks is caught."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.soak import soak

pytestmark = pytest.mark.anyio

KEPT: list[object] = []
"""What leaks on purpose."""


async def test_nothing_is_left(artifacts: Path) -> None:
    """After clients of every kind memory, descriptors, threads, tasks and gauges are as before; good answers right."""
    answers, wrong = await soak(artifacts, seconds=4)

    assert wrong == ()
    clients = {"good", "compared", "bad", "unknown", "slow", "cancelled", "disconnected"}
    assert clients | {"rpc_good", "rpc_bad", "rpc_cancelled", "rpc_disconnected"} <= answers.keys()
    assert all(answers[one] > answers[f"{one} busy"] for one in ("good", "compared", "slow", "rpc_good"))
    assert answers["models unloaded"] > 1


@pytest.mark.parametrize(
    ("what", "leak"),
    [
        ("memory_mib", lambda _loop: KEPT.append(b"x" * (2 << 20))),
        ("descriptors", lambda _loop: KEPT.append(os.open(os.devnull, os.O_RDONLY))),
        ("threads", lambda _loop: threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()),
        ("tasks", lambda loop: loop.call_soon_threadsafe(lambda: KEPT.append(loop.create_task(asyncio.sleep(60))))),
    ],
)
async def test_leaks_are_caught(
    what: str,
    leak: Callable[[asyncio.AbstractEventLoop], object],
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A service that keeps a little of each batch is caught by name."""
    monkeypatch.setattr("tests.soak.soak._SETTLE_S", 2.0)
    loop = asyncio.get_running_loop()
    try:
        _, wrong = await soak(artifacts, seconds=1, on_run=lambda: leak(loop))
        assert what in " ".join(wrong)
    finally:
        for kept in KEPT:
            if isinstance(kept, int):
                os.close(kept)
            if isinstance(kept, asyncio.Task):
                kept.cancel()
        KEPT.clear()
