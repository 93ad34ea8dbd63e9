"""Versions of a model are replaced under load, through a whole server: no error, and each answer is its version's."""

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import Artifact
from service.common.model_info import ModelState
from service.common.types import Probabilities, Rows
from tests.conftest import png
from tests.fakes import FakeEngine, Opener, reached
from tests.fleet import copy_version
from tests.serving import PNG, serving

pytestmark = pytest.mark.anyio


class VersionEngine(FakeEngine):
    """Answers every image with the class of its version."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(slots=2)
        self.version = artifact.version

    def run(self, rows: Rows) -> Probabilities:
        assert not self.closed
        return super().run([np.full((32, 32, 3), self.version, dtype=np.uint8)] * len(rows))


async def test_a_hundred_requests_a_second_through_ten_replacements(artifacts: Path) -> None:
    """All are answered, each by the version that it names, and ten engines are closed at the end."""
    opener = Opener(VersionEngine)
    async with serving(artifacts, open_engine=opener, model_control="explicit") as running:
        over = asyncio.Event()
        answers: list[tuple[int, int, int]] = []

        async def send() -> None:
            reply = await running.http.post("/predict", content=png(1), headers=PNG)
            body = reply.json()
            answers.append((reply.status_code, body["model"]["version"], body["predictions"][0]["class_id"]))

        async def load() -> None:
            loop, tasks = asyncio.get_running_loop(), list[asyncio.Task[None]]()
            started = loop.time()
            while not over.is_set():
                tasks.append(asyncio.create_task(send()))
                await asyncio.sleep(max(0.0, started + len(tasks) / 100 - loop.time()))
            await asyncio.gather(*tasks)

        loading = asyncio.create_task(load())
        for version in range(1, 12):
            if version > 1:
                copy_version(artifacts, version)
                await running.data_plane.load("tiny")
            enough = len(answers) + 20
            await reached(partial(lambda count: len(answers) >= count, enough))
        over.set()
        await loading
        assert {status for status, *_ in answers} == {200}
        assert all(version == best for _, version, best in answers)
        assert {version for _, version, _ in answers} == set(range(1, 12))
        assert len(answers) >= 220
        await reached(lambda: sum(engine.closed for engine in opener.opened) == 10)
        assert [one.version for one in await running.data_plane.versions() if one.state is ModelState.READY] == [11]


async def test_an_export_takes_over_by_itself(artifacts: Path) -> None:
    """With --model-control watch a server answers with a version that was exported while it runs."""
    async with serving(artifacts, open_engine=Opener(VersionEngine), model_control="watch") as running:
        assert (await running.rest("/predict", png()))["model"]["version"] == 1
        copy_version(artifacts, 2)
        async with asyncio.timeout(30):
            while (await running.rest("/predict", png()))["model"]["version"] == 1:
                pass
