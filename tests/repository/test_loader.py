"""Models come and go within a budget: who leaves, who waits, and that nobody loses an answer by it."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, MANIFEST, Artifact
from models.artifact.engine_plan import ComputeCapability
from models.catalog import CATALOG
from service.common.errors import Code, NotReady, ShuttingDown, TopfiveError
from service.common.gpus import Card, Cards
from service.common.metrics import Metrics
from service.common.model_info import ModelState
from service.common.types import BatchLimits, Probabilities, Rows, Runtime
from service.engines.base import CPU, EngineUnavailableError, held_bytes
from service.engines.selection.opening import Opened, OpenEngine
from service.engines.selection.select import ORDER, EngineOptions
from service.inference.ensemble import Ensembles
from service.repository.device_discovery import devices
from service.repository.device_memory import Device
from service.repository.loaded_model import Lease
from service.repository.repository import Repository
from tests.exposition import exposition
from tests.fakes import FakeEngine, ManualClock, reached, settle
from tests.repository.test_model import sample
from tests.repository.test_repository import copy_as

pytestmark = pytest.mark.anyio

NAMES = ("tiny", "b", "c", "d", "e")


class StrictEngine(FakeEngine):
    """Writes down what must never happen: closed twice, closed while it runs, run after it was closed."""

    def __init__(self, name: str, wrong: list[str], *, slots: int, device: str) -> None:
        super().__init__(slots=slots, device=device)
        self.name = name
        self.wrong = wrong
        self.running = 0
        self.at_end: Exception | None = None

    def run(self, rows: Rows) -> Probabilities:
        if self.closed:
            self.wrong.append(f"{self.name} ran closed")
        self.running += 1
        try:
            return super().run(rows)
        finally:
            self.running -= 1

    def close(self) -> None:
        if self.closed or self.running:
            self.wrong.append(f"{self.name} closed twice or while it ran")
        super().close()
        if self.at_end is not None:
            raise self.at_end


class Host:
    """A repository with devices whose budgets are counted in models: each holds `unit` bytes."""

    def __init__(self, root: Path, budgets: dict[str, int]) -> None:
        self.unit = held_bytes((root / "tiny" / "1" / GRAPH).stat().st_size)
        self.budgets = budgets
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.wrong: list[str] = []
        self.engines: list[StrictEngine] = []
        self.refuses: dict[str, list[Exception]] = {}
        self.lands: dict[str, str] = {}
        self.held: dict[str, int] = {}
        self.slots = 1
        self.looks = 0
        self.repository = Repository(
            root,
            CATALOG,
            self.devices,
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch),
            clock=self.clock,
            metrics=self.metrics,
        )

    def devices(self) -> list[Device]:
        """Looked for as `serve` does it."""
        self.looks += 1
        return [Device(name, self.opener(name), budget * self.unit) for name, budget in self.budgets.items()]

    def opener(self, device: str) -> OpenEngine:
        """Opens on that device, unless `refuses` or `lands` say otherwise; `held` says what is held, in models."""

        def open_engine(artifact: Artifact) -> Opened:
            name = artifact.manifest.name
            if errors := self.refuses.get(f"{name} {device}"):
                raise errors.pop(0)
            engine = StrictEngine(name, self.wrong, slots=self.slots, device=self.lands.get(device, device))
            engine.memory_bytes = self.held.get(name, 1) * self.unit
            self.engines.append(engine)
            return Opened(engine)

        return open_engine

    @property
    def loaded(self) -> dict[str, str]:
        """The device of each model that is given out now."""
        entries = [entry for entry in self.repository.entries() if entry.loaded is not None]
        return {entry.name: entry.loaded.device for entry in entries if entry.loaded is not None}

    @property
    def alive(self) -> list[str]:
        """Models whose engines are open."""
        return [engine.name for engine in self.engines if not engine.closed]

    def engine(self, name: str) -> StrictEngine:
        """The engine of that model that was opened last."""
        return next(engine for engine in reversed(self.engines) if engine.name == name)

    async def classify(self, name: str, shade: int = 1) -> int:
        """What a request does."""
        with Lease() as lease:
            model = await self.repository.get(name, lease)
            with model.batcher.admit():
                [ran] = await model.batcher.submit([sample(shade)], deadline=self.clock.now() + 60)
        return int(ran.value.argmax())

    async def use(self, *names: str) -> None:
        """Requests one after the other, a second apart."""
        for name in names:
            await self.classify(name)
            await self.clock.advance(1.0)

    async def busy(self, name: str) -> asyncio.Task[int]:
        """A request whose batch runs until the gate of its engine is set."""
        await self.classify(name)
        self.engine(name).gate.clear()
        task = asyncio.create_task(self.classify(name, 7))
        await reached(lambda: self.engine(name).running == 1)
        return task


@asynccontextmanager
async def host_of(root: Path, budgets: dict[str, int] | None = None) -> AsyncIterator[Host]:
    """A host of five small models, closed at the end, when every engine must be closed and nothing have gone wrong."""
    for name in NAMES[1:]:
        copy_as(root, name)
    host = Host(root, budgets or {CPU: 2})
    try:
        yield host
    finally:
        for engine in host.engines:
            engine.gate.set()
        closing = asyncio.create_task(host.repository.aclose(60))
        await reached(closing.done)
        await closing
    assert host.alive == []
    assert host.wrong == []


async def members(host: Host, name: str) -> None:
    """What a request for an ensemble does with its members."""
    with Lease() as lease:
        await Ensembles(host.repository).get(name, lease)


async def test_the_one_unused_for_longest_leaves(artifacts: Path) -> None:
    """With room for two, the third model sends away the one whose last request is older, not the one loaded first."""
    async with host_of(artifacts) as host:
        await host.use("tiny", "b", "tiny", "c")
        assert sorted(host.loaded) == ["c", "tiny"]
        assert sorted(host.alive) == ["c", "tiny"]
        assert host.repository.entry("b").state is ModelState.EXPORTED
        text = exposition(host.metrics)
        assert 'topfive_unloads_total{model="b"} 1.0' in text
        assert 'topfive_device_models{device="cpu"} 2.0' in text
        assert f'topfive_device_bytes{{device="cpu"}} {float(2 * host.unit)}' in text
        assert f'topfive_device_budget_bytes{{device="cpu"}} {float(2 * host.unit)}' in text


async def test_who_left_comes_back(artifacts: Path) -> None:
    """A request for an unloaded model loads it again and is answered."""
    async with host_of(artifacts, {CPU: 1}) as host:
        await host.use("tiny", "b", "tiny")
        assert [engine.name for engine in host.engines] == ["tiny", "b", "tiny"]
        assert list(host.loaded) == ["tiny"]


async def test_no_budget_unloads_nothing(artifacts: Path) -> None:
    """Without a limit five models stay, and two loads may go on at once."""
    async with host_of(artifacts, {CPU: 0}) as host:
        await host.use(*NAMES)
        assert sorted(host.alive) == sorted(NAMES)


async def test_requests_in_flight_are_answered_first(artifacts: Path) -> None:
    """A model in use leaves last, and only once its request has its answer; who waits for the other gets one too."""
    async with host_of(artifacts, {CPU: 1}) as host:
        first = await host.busy("tiny")
        second = asyncio.create_task(host.classify("b", 9))
        await reached(lambda: "tiny" not in host.loaded)
        assert host.alive == ["tiny"]
        host.engine("tiny").gate.set()
        assert await first == 7
        assert await second == 9
        assert host.alive == ["b"]


async def test_an_idle_model_leaves_before_one_in_use(artifacts: Path) -> None:
    """Although the one in use was used less recently."""
    async with host_of(artifacts) as host:
        host.slots = 2  # one of them goes on
        task = await host.busy("tiny")
        await host.clock.advance(1.0)
        await host.use("b", "c")
        assert sorted(host.loaded) == ["c", "tiny"]
        host.engine("tiny").gate.set()
        assert await task == 7


async def test_a_model_that_stays_in_use_is_kept(artifacts: Path) -> None:
    """After five seconds the other is refused, may try again, and the one in use goes on as before."""
    async with host_of(artifacts, {CPU: 1}) as host:
        task = await host.busy("tiny")
        waiting = asyncio.create_task(host.classify("b"))
        back = asyncio.create_task(host.classify("tiny", 3))
        await reached(lambda: "tiny" not in host.loaded)
        await host.clock.advance(5.0)
        [refused] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(refused, NotReady)
        assert refused.translation.retryable
        assert "tiny would have to be unloaded for b and is still in use; try again" in refused.detail
        assert list(host.loaded) == ["tiny"]
        host.engine("tiny").gate.set()
        assert (await task, await back) == (7, 3)
        assert len(host.engines) == 1


async def test_a_batch_whose_callers_left_keeps_its_model(artifacts: Path) -> None:
    """Nobody waits for its answer, but memory is not free before it ends: it goes on as before, and may leave then."""
    async with host_of(artifacts, {CPU: 1}) as host:
        task = await host.busy("tiny")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waiting = asyncio.create_task(host.classify("b"))
        await reached(lambda: "tiny" not in host.loaded)
        await host.clock.advance(5.0)
        with pytest.raises(NotReady, match="tiny would have to be unloaded for b"):
            await waiting
        assert list(host.loaded) == ["tiny"]
        host.engine("tiny").gate.set()
        assert await host.classify("tiny", 3) == 3
        assert await host.classify("b", 4) == 4
        assert host.alive == ["b"]


async def test_an_engine_that_fails_at_its_end_makes_room(artifacts: Path) -> None:
    """That is for the log, not for who asked for another model; and the room is there again."""
    async with host_of(artifacts, {CPU: 1}) as host:
        await host.use("tiny")
        host.engine("tiny").at_end = RuntimeError("scripted")
        assert await host.classify("b", 2) == 2
        assert await host.classify("tiny", 3) == 3
        assert host.alive == ["tiny"]


async def test_configured_models_stay(artifacts: Path) -> None:
    """Nobody unloads them; the refusal says who holds what and what to do, and the service stays ready."""
    async with host_of(artifacts) as host:
        await host.repository.start(["tiny", "b"])
        with pytest.raises(NotReady, match=r"c needs about .* tiny holds .* \(configured\).*--memory-budget-mib") as no:
            await host.classify("c")
        assert no.value.code is Code.NOT_READY
        assert sorted(host.alive) == ["b", "tiny"]
        assert host.repository.ready


async def test_a_configured_model_that_does_not_fit_stops_the_start(artifacts: Path) -> None:
    """With the figures, not with a crash later."""
    async with host_of(artifacts) as host:
        with pytest.raises(NotReady, match="c cannot be loaded: c needs about"):
            await host.repository.start(["tiny", "b", "c"])
        assert not host.repository.ready


async def test_an_ensemble_larger_than_the_budget_is_refused_at_once(artifacts: Path) -> None:
    """Its first member cannot leave for the second, because the same request holds it: nobody waits for that."""
    async with host_of(artifacts, {CPU: 1}) as host:
        await host.use("tiny")
        asking = asyncio.create_task(members(host, "ensemble:tiny+b"))
        others = [asyncio.create_task(host.classify("tiny", shade)) for shade in (1, 2)]
        with pytest.raises(NotReady, match=r"tiny holds .* waits for another model\); raise --memory-budget-mib"):
            await asking
        assert await asyncio.gather(*others) == [1, 2]
        assert len(host.engines) == 1
        assert await host.classify("b") == 1


async def test_ensembles_do_not_wait_for_each_other(artifacts: Path) -> None:
    """Each holds one of its members and waits for the other, with room for two: one is refused at once."""
    async with host_of(artifacts) as host:
        await host.use("tiny", "b")
        asking = [asyncio.create_task(members(host, name)) for name in ("ensemble:tiny+c", "ensemble:b+d")]
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert sorted(map(type, ended), key=str) == [type(None), NotReady]
        assert len(host.engines) == 3


async def test_more_than_was_expected_makes_room_too(artifacts: Path) -> None:
    """An engine that turns out to hold two shares unloads another; one with three of two is not kept."""
    async with host_of(artifacts) as host:
        host.held = {"c": 2, "d": 3}
        await host.use("tiny", "c")
        assert host.alive == ["c"]
        with pytest.raises(NotReady, match="d needs about"):
            await host.classify("d")
        assert host.alive == []


NO_MEMORY = [
    MemoryError("nothing left"),
    EngineUnavailableError("CUDA failure 2: out of memory ; GPU=0"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("budget", [0, 3])
async def test_a_device_without_memory_gets_another_try(artifacts: Path, error: Exception, budget: int) -> None:
    """The one unused for longest leaves, whatever the budget says, and the load succeeds."""
    async with host_of(artifacts, {CPU: budget}) as host:
        await host.use("tiny", "b")
        host.refuses = {"c cpu": [error]}
        await host.use("c")
        assert sorted(host.alive) == ["b", "c"]


@pytest.mark.parametrize("errors", [NO_MEMORY, [NO_MEMORY[0], EngineUnavailableError("no such operator")]])
async def test_only_one_leaves_for_a_device_without_memory(artifacts: Path, errors: Sequence[Exception]) -> None:
    """A second failure is the answer; so is any failure of another kind, for which nobody leaves."""
    async with host_of(artifacts, {CPU: 0}) as host:
        await host.use("tiny", "b")
        host.refuses = {"c cpu": list(errors), "d cpu": [EngineUnavailableError("no such operator")]}
        with pytest.raises(NotReady, match="c cannot be loaded"):
            await host.classify("c")
        assert host.alive == ["b"]
        with pytest.raises(NotReady, match="no such operator"):
            await host.classify("d")
        assert host.alive == ["b"]


async def test_two_loads_do_not_count_on_the_same_bytes(artifacts: Path) -> None:
    """Five models asked for at once with room for two: never more than two are open, and all are answered."""
    async with host_of(artifacts) as host:
        most = 0
        tasks = [asyncio.create_task(host.classify(name, 5)) for name in NAMES]
        while not all(task.done() for task in tasks):
            most = max(most, len(host.alive))
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [5] * 5
        assert most == 2
        assert len(host.engines) == 5


async def test_who_waited_for_a_load_has_it_before_it_can_leave(artifacts: Path) -> None:
    """With room for one and forty requests for five models, each model is loaded once and answers all of its own."""
    async with host_of(artifacts, {CPU: 1}) as host:
        answers = await asyncio.gather(*(host.classify(NAMES[number % 5], number) for number in range(40)))
        assert answers == list(range(40))
        assert Counter(engine.name for engine in host.engines) == dict.fromkeys(NAMES, 1)


async def test_a_caller_who_left_holds_nothing(artifacts: Path) -> None:
    """Cancelled while the model is loaded: it may be unloaded at once."""
    async with host_of(artifacts, {CPU: 1}) as host:
        task = asyncio.create_task(host.classify("tiny"))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await host.classify("b", 4) == 4
        assert await host.classify("c", 5) == 5


async def test_closing_while_one_leaves_closes_both(artifacts: Path) -> None:
    """The request in flight is answered, who waits for the load is told, and no engine stays open."""
    async with host_of(artifacts, {CPU: 1}) as host:
        task = await host.busy("tiny")
        waiting = asyncio.create_task(host.classify("b"))
        await reached(lambda: "tiny" not in host.loaded)
        closing = asyncio.create_task(host.repository.aclose(60))
        await settle()
        host.engine("tiny").gate.set()
        await reached(closing.done)
        assert await task == 7
        [told] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(told, ShuttingDown)


# --- several devices ---


async def test_the_card_with_the_most_room_takes_it(artifacts: Path) -> None:
    """By what is free, not by number; the CPU is left alone while there is a card."""
    async with host_of(artifacts, {"cuda:0": 2, "cuda:1": 3, CPU: 9}) as host:
        await host.use(*NAMES)
        assert host.loaded == {"tiny": "cuda:1", "b": "cuda:0", "c": "cuda:1", "d": "cuda:0", "e": "cuda:1"}
        await host.use("b", "tiny")
        assert len(host.engines) == 5


async def test_a_plan_that_fits_one_card_only_goes_there(artifacts: Path) -> None:
    """The opener is asked card by card, and the first that works has it; the other models there make room."""
    async with host_of(artifacts, {"cuda:0": 1, "cuda:1": 1, CPU: 1}) as host:
        host.refuses = {f"{name} cuda:0": [EngineUnavailableError("made for sm89")] for name in NAMES}
        await host.use("tiny", "b")
        assert host.loaded == {"tiny": "cuda:1", "b": "cuda:1"} or host.alive == ["b"]
        assert host.loaded["b"] == "cuda:1"


async def test_what_runs_on_no_card_runs_on_the_cpu(artifacts: Path) -> None:
    """An engine that fell back to the CPU is closed while another card is left to try, and counts where it is."""
    async with host_of(artifacts, {"cuda:0": 1, "cuda:1": 1, CPU: 1}) as host:
        host.lands = {"cuda:0": CPU, "cuda:1": CPU}
        await host.use("tiny")
        assert host.loaded == {"tiny": CPU}
        assert [engine.closed for engine in host.engines] == [True, False]
        await host.use("b")
        assert host.loaded == {"b": CPU}


async def test_an_unlisted_card_has_the_budget_that_was_asked_for(artifacts: Path) -> None:
    """A runtime may find a card that nobody listed: what was asked for holds there as well."""
    async with host_of(artifacts, {CPU: 1}) as host:
        host.lands = {CPU: "cuda:0"}
        await host.use("tiny", "b")
        assert (host.loaded, host.alive) == ({"b": "cuda:0"}, ["b"])


async def test_full_cards_leave_the_cpu(artifacts: Path) -> None:
    """With configured models on every card the next goes to the CPU; with that full too, the refusal names all."""
    async with host_of(artifacts, {"cuda:0": 1, CPU: 1}) as host:
        await host.repository.start(["tiny", "b"])
        assert host.loaded == {"tiny": "cuda:0", "b": CPU}
        with pytest.raises(NotReady, match=r"on cuda:0, whose budget .* on cpu, whose budget"):
            await host.classify("c")


async def test_why_a_card_has_not_the_model_is_kept(artifacts: Path) -> None:
    """Who asks about a model on the CPU is told what each card refused it for, and what serves instead."""
    async with host_of(artifacts, {"cuda:0": 1, "cuda:1": 1, CPU: 0}) as host:
        host.refuses = {"tiny cuda:1": [EngineUnavailableError("its kernels fail")]}
        host.held = {"tiny": 3}
        await host.use("tiny")
        [loaded] = [entry.loaded for entry in host.repository.entries() if entry.loaded is not None]
        assert loaded.device == CPU
        notes = loaded.choice.passed_over
        await host.use("b")
        [b] = [entry.loaded for entry in host.repository.entries() if entry.loaded and entry.name == "b"]
        assert b.choice.passed_over == ()

    assert [note.split(":")[0] for note in notes] == ["tiny is not loaded on cuda"] * 2
    assert any("its kernels fail" in note for note in notes)
    assert any("cuda:0: " in note and "MiB" in note for note in notes)
    assert all(note.endswith("; fake in f32 serves instead") for note in notes)


async def test_a_device_whose_slots_all_hang_is_named(artifacts: Path) -> None:
    """Every model there is unready and lost, with the name of the one that hangs; those elsewhere go on."""
    async with host_of(artifacts, {"cuda:0": 2, CPU: 1}) as host:
        await host.repository.start(["tiny", "b", "c"])
        assert host.loaded == {"tiny": "cuda:0", "b": "cuda:0", "c": CPU}
        task = await host.busy("tiny")
        await host.clock.advance(61.0)
        assert host.repository.failing == ["tiny", "b"]
        with pytest.raises(NotReady) as refused:
            host.repository.check_ready()
        hangs = "fake 1 in f32 on cpu, slot 0, has not returned from a batch of 1 for 61 s"
        assert refused.value.detail == f"tiny fails: {hangs}; b fails: its device is held by a batch of tiny ({hangs})"
        text = exposition(host.metrics)
        assert 'topfive_stuck_batch_seconds{model="tiny",precision="f32",runtime="fake",slot="0"} 61.0' in text
        assert not host.repository.alive
        assert await host.classify("c", 8) == 8
        host.engine("tiny").gate.set()
        await asyncio.gather(task, return_exceptions=True)
        await reached(lambda: host.repository.ready)
        assert "topfive_stuck_batch_seconds" not in exposition(host.metrics)


async def test_a_load_that_fails_does_not_unload_others_at_each_request(artifacts: Path) -> None:
    """Once it did; for half a minute it is refused where it would again, then or exported anew it is tried again."""
    async with host_of(artifacts, {CPU: 2}) as host:
        host.refuses["c cpu"] = [EngineUnavailableError("its graph is odd")] * 3
        await host.use("tiny", "b")
        with pytest.raises(NotReady, match="its graph is odd"):
            await host.classify("c")
        assert list(host.loaded) == ["b"]
        await host.use("tiny")
        for _ in range(3):
            with pytest.raises(NotReady, match="odd; no model is unloaded to try again for 29 s"):
                await host.classify("c")
        assert (sorted(host.loaded), len(host.refuses["c cpu"])) == (["b", "tiny"], 2)
        await host.clock.advance(29.0)
        with pytest.raises(NotReady, match=r"its graph is odd$"):
            await host.classify("c")
        assert (list(host.loaded), len(host.refuses["c cpu"])) == (["tiny"], 1)
        await host.use("b")
        manifest = artifacts / "c" / "1" / MANIFEST
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "macs": 5}))
        with pytest.raises(NotReady, match=r"its graph is odd$"):
            await host.classify("c")
        assert host.refuses["c cpu"] == []


async def test_on_a_cpu_all_models_together_run_as_many_batches_as_one(artifacts: Path) -> None:
    """Five models flooded, each with two slots of its own: two items run, all others wait, and all are answered."""
    async with host_of(artifacts, {CPU: 0}) as host:
        host.slots = 2
        await host.repository.start(NAMES)
        for engine in host.engines:
            engine.gate.clear()
        tasks = [asyncio.create_task(host.classify(name, 3)) for name in NAMES * 4]
        await settle()
        models = [await host.repository.get(name) for name in NAMES]
        assert sum(model.batcher.in_flight for model in models) == 2
        assert sum(model.batcher.depth for model in models) == 18
        for engine in host.engines:
            engine.gate.set()
        assert await asyncio.gather(*tasks) == [3] * 20


CARDS = Cards((Card(0, "one", ComputeCapability(7, 5), 1000, 900), Card(1, "two", ComputeCapability(8, 6), 2000, 1900)))


@pytest.mark.parametrize(
    ("runtime", "found", "mib", "expected"),
    [
        (Runtime.OPENVINO, CARDS, 0, [(CPU, 0)]),
        (Runtime.ONNXRUNTIME, CARDS, 1, [(CPU, 1 << 20)]),
        (Runtime.AUTO, CARDS, 0, [("cuda:0", 900), ("cuda:1", 1800), (CPU, 0)]),
        (Runtime.AUTO, Cards((), "no driver"), 0, [(CPU, 0)]),
        (Runtime.ONNXRUNTIME_CUDA, CARDS, 1, [("cuda:0", 1 << 20), ("cuda:1", 1 << 20)]),
        (Runtime.TENSORRT, Cards((), "no driver"), 0, [("cuda:0", 0)]),
    ],
)
def test_devices(runtime: Runtime, found: Cards, mib: int, expected: list[tuple[str, int]]) -> None:
    """Cards where the runtime runs on cards, the CPU where it does, each with its budget."""
    listed = devices(EngineOptions(runtime), mib, lambda: found)
    assert [(one.name, one.budget_bytes) for one in listed] == expected


def test_a_card_that_is_missing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Where one of the cards cannot be used, the log has the reason; where there is none at all, others say so."""
    devices(EngineOptions(), 0, lambda: replace(CARDS, reason="card 2 cannot be used: busy"))
    devices(EngineOptions(), 0, lambda: Cards((), "no driver"))
    assert caplog.messages == ["card 2 cannot be used: busy"]


def test_the_cpu_is_for_runtimes_of_the_cpu() -> None:
    """Beside cards: a model that a full card has refused does not go there after all; without any, all are tried."""
    among = []
    for found in (CARDS, Cards(())):
        cpu = devices(EngineOptions(), 0, partial(Cards, found.found))[-1].open_engine
        assert isinstance(cpu, partial)
        among.append(cpu.keywords["options"].among)
    assert among == [(Runtime.OPENVINO, Runtime.ONNXRUNTIME), ORDER]


async def test_who_only_reports_opens_no_card(artifacts: Path) -> None:
    """Devices are found once, at the first load, however many load at once: before it no card is touched."""
    async with host_of(artifacts, {"cuda:0": 2, CPU: 1}) as host:
        assert {"tiny", "b"} <= {entry.name for entry in host.repository.entries()}
        assert host.looks == 0
        await asyncio.gather(host.classify("tiny"), host.classify("b"))
        assert host.looks == 1


def test_cards_are_not_looked_for_in_vain() -> None:
    """A look takes memory on every card: a runtime of the CPU does not ask."""

    def look() -> Cards:
        raise AssertionError("looked")

    assert [one.name for one in devices(EngineOptions(Runtime.OPENVINO), 0, look)] == [CPU]


# --- everything at once ---


class Day:
    """A random day of a host; `most` is the largest number of bytes that was ever there."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        self.host = host
        self.chance = chance
        self.tasks: list[asyncio.Task[int]] = []
        self.most = 0

    async def step(self) -> None:
        """Something happens, and the loop turns a few times."""
        host, chance = self.host, self.chance
        match chance.randrange(10):
            case 0 if self.tasks:
                chance.choice(self.tasks).cancel()
            case 1:
                host.refuses.setdefault(f"{chance.choice(NAMES)} cpu", []).append(chance.choice(NO_MEMORY))
            case 2:
                chance.choice(host.engines).gate.clear()
            case 3:
                self.open_gates()
            case 4:
                await host.clock.advance(chance.choice([0.1, 1.0, 6.0]))
            case 5:
                chance.choice(host.engines).script.append(RuntimeError("scripted"))
            case _:
                shade = len(self.tasks) + 1
                self.tasks.append(asyncio.create_task(host.classify(chance.choice(NAMES), shade)))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
            self.most = max(self.most, bytes_on(host))

    def open_gates(self) -> None:
        """Nothing hangs any more."""
        for engine in self.host.engines:
            engine.gate.set()

    async def end(self) -> None:
        """Let every request end, with time going on."""
        for _ in range(2000):
            if all(task.done() for task in self.tasks):
                return
            self.open_gates()
            await self.host.clock.advance(0.1)
            await asyncio.sleep(0.001)
        raise AssertionError("a request that never ended")

    def check(self) -> None:
        """Each request has its own answer, or an error that is not the eviction's."""
        assert self.most <= self.host.budgets[CPU] * self.host.unit
        for number, task in enumerate(self.tasks):
            if not task.cancelled():
                error = task.exception()
                assert isinstance(error, TopfiveError) if error else task.result() == number + 1
                assert not isinstance(error, ShuttingDown)


def bytes_on(host: Host) -> int:
    """What the metrics say that the CPU holds."""
    lines = exposition(host.metrics).splitlines()
    return next(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("topfive_device_bytes{"))


@pytest.mark.parametrize("seed", range(60))
async def test_every_request_ends_once_within_the_budget(artifacts: Path, seed: int) -> None:
    """Random requests, departures, failures and stalls: an answer or an honest error each, and never too many bytes."""
    chance = random.Random(seed)
    async with host_of(artifacts, {CPU: chance.randint(1, 3)}) as host:
        host.held = {"e": chance.randint(1, 2)}
        await host.use("tiny")
        if chance.random() < 0.5:
            await host.repository.start(["tiny"])
        day = Day(host, chance)
        for _ in range(80):
            await day.step()
        await day.end()
        day.check()
