"""Which model is evicted for another, over tables of what devices hold."""

import random

import pytest

from service.repository.device_memory import (
    DeviceMemory,
    ModelMemory,
    ModelUse,
    OverBudgetError,
    budget_bytes,
    expected_bytes,
    most_free_first,
)

MIB = 1 << 20

OLD, YOUNG = ModelMemory("old", 40, 1.0, ModelUse.IDLE, 1), ModelMemory("young", 30, 2.0, ModelUse.IDLE, 1)
BUSY, FIXED = ModelMemory("busy", 30, 0.0, ModelUse.IN_USE, 1), ModelMemory("fixed", 40, 0.0, ModelUse.CONFIGURED, 1)


def device(*models: ModelMemory, budget: int = 100) -> DeviceMemory:
    """A card with that budget and these models."""
    return DeviceMemory("cuda:0", budget, models)


def _name(model: ModelMemory | None) -> str | None:
    return None if model is None else model.name


@pytest.mark.parametrize(
    ("asked_mib", "card_bytes", "expected"),
    [
        (0, None, 0),
        (0, 11 * 1024 * MIB, int(11 * 1024 * MIB * 0.9)),
        (512, None, 512 * MIB),
        (512, 11 * 1024 * MIB, 512 * MIB),
    ],
)
def test_budget(asked_mib: int, card_bytes: int | None, expected: int) -> None:
    """A budget is what was asked for, or else 90 % of a card, and no limit on the CPU."""
    assert budget_bytes(asked_mib, card_bytes) == expected


@pytest.mark.parametrize(
    ("graph_held", "plans", "expected"), [(100, [], 100), (100, [30], 60), (100, [30, 80], 160), (100, [0], 100)]
)
def test_expected_bytes(graph_held: int, plans: list[int], expected: int) -> None:
    """A model is expected to need twice its largest plan, or else what its graph takes elsewhere."""
    assert expected_bytes(graph_held, plans) == expected


def test_most_free_first() -> None:
    """Devices are in the order of the free bytes of their budgets; one without a limit is first, equals stay."""
    small, full = device(budget=90), device(FIXED, OLD, budget=120)
    endless, same = device(FIXED, budget=0), device(budget=90)
    assert most_free_first([full, small, endless, same]) == [endless, small, same, full]


@pytest.mark.parametrize(
    ("there", "need", "evicted"),
    [
        (device(), 100, None),
        (device(OLD, FIXED, budget=0), 10**15, None),
        (device(OLD, YOUNG), 30, None),
        (device(OLD, YOUNG), 31, "old"),
        (device(YOUNG, OLD), 31, "old"),
        (device(BUSY, YOUNG, OLD), 10, "old"),
        (device(BUSY, YOUNG), 41, "young"),
        (device(BUSY, FIXED), 60, "busy"),
        (device(OLD, YOUNG), 100, "old"),
    ],
)
def test_evicted(there: DeviceMemory, need: int, evicted: str | None) -> None:
    """Nothing is evicted for a model that fits; else the least recently used idle model, and then one in use."""
    assert _name(there.next_to_evict("new", need)) == evicted


@pytest.mark.parametrize(
    ("there", "need"),
    [
        (device(), 101),
        (device(FIXED), 61),
        (device(FIXED, YOUNG), 61),
        (device(ModelMemory("gone", 50, 0.0, ModelUse.UNLOADING, 1)), 51),
        (device(ModelMemory("hung", 50, 0.0, ModelUse.STUCK, 1), OLD), 51),
    ],
)
def test_nothing_is_evicted_in_vain(there: DeviceMemory, need: int) -> None:
    """A model that would not fit even if all were evicted that may be is refused before any is."""
    with pytest.raises(OverBudgetError):
        there.next_to_evict("new", need)


def test_refusal_has_all_figures() -> None:
    """A refusal says what is needed, the budget, which model holds how much and why it stays, and what to do."""
    full = device(
        ModelMemory("resnet50", 30 * MIB, 0.0, ModelUse.CONFIGURED, 1),
        ModelMemory("vgg16", 60 * MIB, 0.0, ModelUse.STUCK, 1),
        budget=100 * MIB,
    )
    with pytest.raises(OverBudgetError) as refused:
        full.next_to_evict("googlenet", 45 * MIB)
    assert str(refused.value) == (
        "googlenet needs about 45.0 MiB on cuda:0, whose budget is 100.0 MiB; vgg16 holds 60.0 MiB (stuck in a batch), "
        "resnet50 holds 30.0 MiB (configured); raise --memory-budget-mib, or name fewer models with --models"
    )


@pytest.mark.parametrize(
    ("there", "evicted"),
    [(device(), None), (device(FIXED), None), (device(FIXED, BUSY), "busy"), (device(BUSY, OLD, YOUNG), "old")],
)
def test_evicted_for_a_device_without_memory(there: DeviceMemory, evicted: str | None) -> None:
    """When a device itself lacks memory, whatever its budget, a model is evicted in the same order or none is."""
    assert _name(there.least_recently_used()) == evicted


@pytest.mark.parametrize("seed", range(20))
def test_eviction_ends_with_room_or_touches_nothing(seed: int) -> None:
    """Over random devices, evictions make room, each is needed and allowed; or nothing is evicted at all."""
    chance = random.Random(seed)
    for _ in range(10):
        held = tuple(
            ModelMemory(f"m{number}", chance.randint(1, 40), chance.random(), chance.choice(list(ModelUse)), 1)
            for number in range(6)
        )
        now = device(*held, budget=sum(one.size_bytes for one in held) + chance.randint(0, 20))
        need, evicted = chance.randint(1, 150), list[ModelMemory]()
        try:
            while (gone := now.next_to_evict("new", need)) is not None:
                evicted.append(gone)
                now = device(*(one for one in now.models if one is not gone), budget=now.budget_bytes)
        except OverBudgetError:
            assert evicted == []
            continue
        assert now.used_bytes + need <= now.budget_bytes
        assert all(one.use in (ModelUse.IDLE, ModelUse.IN_USE) for one in evicted)
        assert not evicted or now.used_bytes + evicted[-1].size_bytes + need > now.budget_bytes
