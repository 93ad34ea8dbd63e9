"""Models come and go within the budgets of devices: which one is evicted, what waits, and that no answer is lost."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from models.artifact.artifact import MANIFEST
from service.common.errors import Code, NotReady, ShuttingDown, TopfiveError
from service.common.model_info import ModelState
from service.engines.base import CPU, EngineUnavailableError
from service.inference.ensemble import Ensembles
from service.repository.loaded_model import Lease
from tests.exposition import exposition, samples, value
from tests.fakes import reached, settle
from tests.fleet import copy_model
from tests.repository.host import NAMES, Host, host_of

pytestmark = pytest.mark.anyio

NO_MEMORY = [
    MemoryError("nothing left"),
    EngineUnavailableError("CUDA failure 2: out of memory ; GPU=0"),
]


async def members(host: Host, name: str) -> None:
    """What a request for an ensemble does with its members."""
    with Lease() as lease:
        await Ensembles(host.repository).get(name, lease)


# --- one device ---


async def test_the_least_recently_used_model_is_evicted(five: Path) -> None:
    """With room for two, a third model evicts the one whose last request is older; a request loads that one again."""
    async with host_of(five, {CPU: 2}) as host:
        await host.use("tiny", "b", "tiny", "c")
        assert sorted(host.loaded) == sorted(host.open) == ["c", "tiny"]
        assert host.repository.entry("b").state is ModelState.EXPORTED
        text = exposition(host.metrics)
        assert 'topfive_unloads_total{model="b"} 1.0' in text
        assert 'topfive_device_models{device="cpu"} 2.0' in text
        assert f'topfive_device_bytes{{device="cpu"}} {float(2 * host.unit)}' in text
        assert f'topfive_device_budget_bytes{{device="cpu"}} {float(2 * host.unit)}' in text
        [utilisation] = samples(host.metrics, "topfive_utilisation")
        assert utilisation.labels == {"device": "cpu"}
        assert 0 < utilisation.value <= 1
        assert await host.classify("b", 9) == 9
        assert sorted(host.loaded) == sorted(host.open) == ["b", "c"]


async def test_requests_in_flight_are_answered_first(five: Path) -> None:
    """A model in use is closed once its request has its answer; the request that waits for the room is answered too."""
    async with host_of(five, {CPU: 1}) as host:
        first = await host.busy("tiny")
        second = asyncio.create_task(host.classify("b", 9))
        await reached(lambda: "tiny" not in host.loaded)
        assert host.open == ["tiny"]
        host.open_gates()
        assert (await first, await second) == (7, 9)
        assert host.open == ["b"]


async def test_an_idle_model_is_evicted_before_one_in_use(five: Path) -> None:
    """A model in use stays while there is an idle one, although the one in use was used less recently."""
    async with host_of(five, {CPU: 2}) as host:
        host.slots = 2  # one of them goes on
        task = await host.busy("tiny")
        await host.clock.advance(1.0)
        await host.use("b", "c")
        assert sorted(host.loaded) == ["c", "tiny"]
        host.open_gates()
        assert await task == 7


async def test_a_model_that_stays_in_use_is_kept(five: Path) -> None:
    """When a model is still in use after five seconds, the load of another is refused for now, and it goes on."""
    async with host_of(five, {CPU: 1}) as host:
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
        host.open_gates()
        assert (await task, await back) == (7, 3)
        assert len(host.engines) == 1


async def test_a_batch_whose_clients_left_keeps_its_model(five: Path) -> None:
    """A batch keeps its model loaded after its clients have left, because its memory is not free before it ends."""
    async with host_of(five, {CPU: 1}) as host:
        task = await host.busy("tiny")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waiting = asyncio.create_task(host.classify("b"))
        await reached(lambda: "tiny" not in host.loaded)
        await host.clock.advance(5.0)
        with pytest.raises(NotReady, match="tiny would have to be unloaded for b"):
            await waiting
        assert list(host.loaded) == ["tiny"]
        host.open_gates()
        assert (await host.classify("tiny", 3), await host.classify("b", 4)) == (3, 4)
        assert host.open == ["b"]


async def test_an_engine_that_fails_to_close_makes_room(five: Path) -> None:
    """An engine that fails while it closes is no error of the request that evicts it, and its memory counts as free."""
    async with host_of(five, {CPU: 1}) as host:
        await host.use("tiny")
        host.engine("tiny").at_end = RuntimeError("scripted")
        assert (await host.classify("b", 2), await host.classify("tiny", 3)) == (2, 3)
        assert host.open == ["tiny"]


async def test_configured_models_stay(five: Path) -> None:
    """A configured model is never evicted; the refusal has all figures and what to do, and the service stays ready."""
    async with host_of(five, {CPU: 2}) as host:
        await host.repository.start(["tiny", "b"])
        with pytest.raises(NotReady, match=r"c needs about .* tiny holds .* \(configured\).*--memory-budget-mib") as no:
            await host.classify("c")
        assert no.value.code is Code.NOT_READY
        assert sorted(host.open) == ["b", "tiny"]
        assert host.ready()


async def test_a_configured_model_that_does_not_fit_stops_the_start(five: Path) -> None:
    """A start with more models than the budget takes fails with the figures."""
    async with host_of(five, {CPU: 2}) as host:
        with pytest.raises(NotReady, match="c cannot be loaded: c needs about"):
            await host.repository.start(["tiny", "b", "c"])
        assert not host.ready()


async def test_an_ensemble_larger_than_the_budget_is_refused_at_once(five: Path) -> None:
    """An ensemble whose members do not fit together is refused without a wait; other requests are answered."""
    async with host_of(five, {CPU: 1}) as host:
        await host.use("tiny")
        ensemble = asyncio.create_task(members(host, "ensemble:tiny+b"))
        others = [asyncio.create_task(host.classify("tiny", shade)) for shade in (1, 2)]
        with pytest.raises(NotReady, match=r"tiny holds .* waits for another model\); raise --memory-budget-mib"):
            await ensemble
        assert await asyncio.gather(*others) == [1, 2]
        assert len(host.engines) == 1
        assert await host.classify("b") == 1


async def test_ensembles_do_not_wait_for_each_other(five: Path) -> None:
    """Of two ensembles that each have one member and wait for the room of the other's, one is refused at once."""
    async with host_of(five, {CPU: 2}) as host:
        await host.use("tiny", "b")
        tasks = [asyncio.create_task(members(host, name)) for name in ("ensemble:tiny+c", "ensemble:b+d")]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(map(type, ended), key=str) == [type(None), NotReady]
        assert len(host.engines) == 3


async def test_more_than_was_expected_makes_room_too(five: Path) -> None:
    """An engine that holds more than expected evicts another model; one that holds more than the budget is closed."""
    async with host_of(five, {CPU: 2}) as host:
        host.held = {"c": 2, "d": 3}
        await host.use("tiny", "c")
        assert host.open == ["c"]
        with pytest.raises(NotReady, match="d needs about"):
            await host.classify("d")
        assert host.open == []


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("budget", [0, 3])
async def test_a_device_without_memory_gets_another_try(five: Path, error: Exception, budget: int) -> None:
    """When a device lacks memory, whatever the budget says, one model is evicted and the load is tried again."""
    async with host_of(five, {CPU: budget}) as host:
        await host.use("tiny", "b")
        host.refuses = {"c cpu": [error]}
        await host.use("c")
        assert sorted(host.open) == ["b", "c"]


@pytest.mark.parametrize("errors", [NO_MEMORY, [NO_MEMORY[0], EngineUnavailableError("no such operator")]])
async def test_only_one_is_evicted_for_a_device_without_memory(five: Path, errors: Sequence[Exception]) -> None:
    """A second failure is the answer, and a failure for another reason than memory evicts no model."""
    async with host_of(five) as host:
        await host.use("tiny", "b")
        host.refuses = {"c cpu": list(errors), "d cpu": [EngineUnavailableError("no such operator")]}
        with pytest.raises(NotReady, match="c cannot be loaded"):
            await host.classify("c")
        assert host.open == ["b"]
        with pytest.raises(NotReady, match="no such operator"):
            await host.classify("d")
        assert host.open == ["b"]


async def test_a_loaded_model_answers_those_who_waited_before_it_is_evicted(five: Path) -> None:
    """With room for one and forty requests for five models, each model is loaded once and answers all of its own."""
    async with host_of(five, {CPU: 1}) as host:
        answers = await asyncio.gather(*(host.classify(NAMES[number % 5], number) for number in range(40)))
        assert answers == list(range(40))
        assert Counter(engine.name for engine in host.engines) == dict.fromkeys(NAMES, 1)


async def test_a_client_that_left_keeps_no_model(five: Path) -> None:
    """A model whose only client left during its load can be evicted at once."""
    async with host_of(five, {CPU: 1}) as host:
        task = asyncio.create_task(host.classify("tiny"))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await host.classify("b", 4), await host.classify("c", 5)) == (4, 5)


async def test_closing_during_an_eviction_closes_both(five: Path) -> None:
    """When the repository closes during an eviction, the request in flight is answered and the waiting one refused."""
    async with host_of(five, {CPU: 1}) as host:
        task = await host.busy("tiny")
        waiting = asyncio.create_task(host.classify("b"))
        await reached(lambda: "tiny" not in host.loaded)
        closing = asyncio.create_task(host.repository.aclose(60))
        await settle()
        host.open_gates()
        await reached(closing.done)
        assert await task == 7
        [refused] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(refused, ShuttingDown)


async def test_a_load_that_fails_does_not_evict_others_at_each_request(artifacts: Path) -> None:
    """A load that failed evicts no further model for half a minute, unless the model is exported again meanwhile."""
    copy_model(artifacts, "b")
    copy_model(artifacts, "c")
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


async def test_on_a_cpu_all_models_together_run_as_many_batches_as_one(five: Path) -> None:
    """Five models with two slots each run two batches at a time on a CPU; all other requests wait and are answered."""
    async with host_of(five) as host:
        host.slots = 2
        await host.repository.start(NAMES)
        for engine in host.engines:
            engine.gate.clear()
        tasks = [asyncio.create_task(host.classify(name, 3)) for name in NAMES * 4]
        await settle()
        models = [await host.repository.get(name) for name in NAMES]
        assert sum(model.batcher.in_flight for model in models) == 2
        assert sum(model.batcher.depth for model in models) == 18
        host.open_gates()
        assert await asyncio.gather(*tasks) == [3] * 20


# --- several devices ---


async def test_the_card_with_the_most_room_is_taken(five: Path) -> None:
    """A model goes to the card with the most free memory; no model goes to the CPU while there is a card."""
    async with host_of(five, {"cuda:0": 2, "cuda:1": 3, CPU: 9}) as host:
        await host.use(*NAMES)
        assert host.loaded == {"tiny": "cuda:1", "b": "cuda:0", "c": "cuda:1", "d": "cuda:0", "e": "cuda:1"}
        await host.use("b", "tiny")
        assert len(host.engines) == 5


async def test_a_plan_that_fits_one_card_only_goes_there(five: Path) -> None:
    """A model that one card refuses is loaded on the next card, where other models make room for it."""
    async with host_of(five, {"cuda:0": 1, "cuda:1": 1, CPU: 1}) as host:
        host.refuses = {f"{name} cuda:0": [EngineUnavailableError("made for sm89")] * 2 for name in NAMES}
        await host.use("tiny", "b")
        assert host.loaded == {"b": "cuda:1"}
        assert host.open == ["b"]


async def test_what_runs_on_no_card_runs_on_the_cpu(five: Path) -> None:
    """An engine that falls back to the CPU is closed while another card is left to try, and counts on the CPU."""
    async with host_of(five, {"cuda:0": 1, "cuda:1": 1, CPU: 1}) as host:
        host.lands = {"cuda:0": CPU, "cuda:1": CPU}
        await host.use("tiny")
        assert host.loaded == {"tiny": CPU}
        assert [engine.closed for engine in host.engines] == [True, False]
        await host.use("b")
        assert host.loaded == {"b": CPU}


async def test_an_unlisted_card_has_the_budget_that_was_asked_for(five: Path) -> None:
    """A card that only a runtime finds has the budget that was asked for."""
    async with host_of(five, {CPU: 1}) as host:
        host.lands = {CPU: "cuda:0"}
        await host.use("tiny", "b")
        assert (host.loaded, host.open) == ({"b": "cuda:0"}, ["b"])


async def test_full_cards_leave_the_cpu(five: Path) -> None:
    """When configured models fill the cards, the next goes to the CPU; when that is full too, the refusal names all."""
    async with host_of(five, {"cuda:0": 1, CPU: 1}) as host:
        await host.repository.start(["tiny", "b"])
        assert host.loaded == {"tiny": "cuda:0", "b": CPU}
        with pytest.raises(NotReady, match=r"on cuda:0, whose budget .* on cpu, whose budget"):
            await host.classify("c")


async def test_why_a_card_has_not_the_model_is_kept(five: Path) -> None:
    """A model on the CPU keeps why each card refused it, and what serves instead."""
    async with host_of(five, {"cuda:0": 1, "cuda:1": 1, CPU: 0}) as host:
        host.refuses = {"tiny cuda:1": [EngineUnavailableError("its kernels fail")]}
        host.held = {"tiny": 3}
        tiny = await host.repository.get("tiny")
        b = await host.repository.get("b")
        notes = tiny.choice.passed_over
        assert (tiny.device, b.choice.passed_over) == (CPU, ())

    assert [note.split(":")[0] for note in notes] == ["tiny is not loaded on cuda"] * 2
    assert any("its kernels fail" in note for note in notes)
    assert any("cuda:0: " in note and "MiB" in note for note in notes)
    assert all(note.endswith("; fake in f32 serves instead") for note in notes)


async def test_a_device_whose_slots_are_all_stuck_is_named(five: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When a batch is stuck, each model of its device is unready and says why; models of other devices go on."""
    async with host_of(five, {"cuda:0": 2, CPU: 1}) as host:
        await host.repository.start(["tiny", "b", "c"])
        assert host.loaded == {"tiny": "cuda:0", "b": "cuda:0", "c": CPU}
        task = await host.busy("tiny")
        await host.clock.advance(59.0)
        assert host.ready()
        await host.clock.advance(2.0)
        assert host.repository.failing == ["tiny", "b"]
        with pytest.raises(NotReady) as refused:
            host.repository.check_ready()
        stuck = "fake 1 in f32 on cpu, slot 0, has not returned from a batch of 1 for 61 s"
        assert refused.value.detail == f"tiny fails: {stuck}; b fails: its device is held by a batch of tiny ({stuck})"
        labels = {"model": "tiny", "version": "1", "precision": "f32", "runtime": "fake", "slot": "0"}
        assert value(host.metrics, "topfive_stuck_batch_seconds", **labels) == 61.0
        assert f"tiny: {stuck.replace('61', '60')}" in caplog.text
        assert not host.alive()
        assert await host.classify("c", 8) == 8
        host.open_gates()
        await asyncio.gather(task, return_exceptions=True)
        await reached(host.ready)
        assert host.alive()
        assert "tiny: slot 0 has returned after 61 s" in caplog.text
        assert "topfive_stuck_batch_seconds" not in exposition(host.metrics)


async def test_a_list_of_models_touches_no_card(five: Path) -> None:
    """Devices are found at the first load, and once however many models load; a list of models touches no card."""
    async with host_of(five, {"cuda:0": 2, CPU: 1}) as host:
        assert {"tiny", "b"} <= {entry.name for entry in host.repository.entries()}
        assert host.device_searches == 0
        await asyncio.gather(host.classify("tiny"), host.classify("b"))
        assert host.device_searches == 1


# --- everything at once ---


class Day:
    """Random requests to a host; `most_bytes` is the most that its CPU ever held."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        self.host = host
        self.chance = chance
        self.tasks: list[asyncio.Task[int]] = []
        self.most_bytes = 0.0

    async def step(self) -> None:
        """Let something happen, and the loop turn a few times."""
        host, chance = self.host, self.chance
        match chance.randrange(10):
            case 0 if self.tasks:
                chance.choice(self.tasks).cancel()
            case 1:
                host.refuses.setdefault(f"{chance.choice(NAMES)} cpu", []).append(chance.choice(NO_MEMORY))
            case 2:
                chance.choice(host.engines).gate.clear()
            case 3:
                host.open_gates()
            case 4:
                await host.clock.advance(chance.choice([0.1, 1.0, 6.0]))
            case 5:
                chance.choice(host.engines).script.append(RuntimeError("scripted"))
            case _:
                shade = len(self.tasks) + 1
                self.tasks.append(asyncio.create_task(host.classify(chance.choice(NAMES), shade)))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
            self.most_bytes = max(self.most_bytes, value(host.metrics, "topfive_device_bytes", device=CPU) or 0.0)

    async def end(self) -> None:
        """Let every request end, with time going on."""
        for _ in range(2000):
            if all(task.done() for task in self.tasks):
                return
            self.host.open_gates()
            await self.host.clock.advance(0.1)
            await asyncio.sleep(0.001)
        raise AssertionError("a request that never ended")


@pytest.mark.parametrize("seed", range(30))
async def test_every_request_ends_once_within_the_budget(five: Path, seed: int) -> None:
    """Whatever arrives, leaves, fails and hangs, each request has its answer or an error, and the budget holds."""
    chance = random.Random(seed)
    async with host_of(five, {CPU: chance.randint(1, 3)}) as host:
        host.held = {"e": chance.randint(1, 2)}
        await host.use("tiny")
        if chance.random() < 0.5:
            await host.repository.start(["tiny"])
        day = Day(host, chance)
        for _ in range(80):
            await day.step()
        await day.end()
        assert 0 < day.most_bytes <= host.budgets[CPU] * host.unit
        for number, task in enumerate(day.tasks):
            if not task.cancelled():
                error = task.exception()
                assert isinstance(error, TopfiveError) if error else task.result() == number + 1
                assert not isinstance(error, ShuttingDown)
