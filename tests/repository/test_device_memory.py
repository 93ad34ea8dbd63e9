"""Where a model goes and who leaves for it, over tables of what devices hold."""

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


def room(*held: tuple[str, int, float, ModelUse], budget: int = 100) -> DeviceMemory:
    """A device with that budget."""
    return DeviceMemory("cuda:0", budget, tuple(ModelMemory(*one) for one in held))


OLD, YOUNG = ("old", 40, 1.0, ModelUse.IDLE), ("young", 30, 2.0, ModelUse.IDLE)
BUSY, FIXED = ("busy", 30, 0.0, ModelUse.IN_USE), ("fixed", 40, 0.0, ModelUse.CONFIGURED)


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
    """What was asked for; else 90 % of a card, and no limit on the CPU."""
    assert budget_bytes(asked_mib, card_bytes) == expected


@pytest.mark.parametrize(
    ("graph_held", "plans", "expected"), [(100, [], 100), (100, [30], 60), (100, [30, 80], 160), (100, [0], 100)]
)
def test_expected_bytes(graph_held: int, plans: list[int], expected: int) -> None:
    """Twice the largest plan where there is one; else what the graph takes elsewhere."""
    assert expected_bytes(graph_held, plans) == expected


def test_most_room_first() -> None:
    """By free bytes of the budget, not by the size of the card; without a limit before all, equals as they were."""
    small, full = room(budget=90), room(FIXED, OLD, budget=120)
    endless, same = room(FIXED, budget=0), room(budget=90)
    assert most_free_first([full, small, endless, same]) == [endless, small, same, full]


@pytest.mark.parametrize(
    ("held", "need", "leaves"),
    [
        ([], 100, None),
        ([OLD, YOUNG], 30, None),
        ([OLD, YOUNG], 31, "old"),
        ([YOUNG, OLD], 31, "old"),
        ([BUSY, YOUNG, OLD], 10, "old"),
        ([BUSY, YOUNG], 41, "young"),
        ([BUSY, FIXED], 60, "busy"),
        ([OLD, YOUNG], 100, "old"),
    ],
)
def test_who_leaves(held: list[tuple[str, int, float, ModelUse]], need: int, leaves: str | None) -> None:
    """Nobody where it fits; else the idle one unused for longest; one in use only where no idle one is left."""
    assert room(*held).next_to_evict("new", need) == leaves


@pytest.mark.parametrize(
    ("held", "need"),
    [
        ([], 101),
        ([FIXED], 61),
        ([FIXED, YOUNG], 61),
        ([("gone", 50, 0.0, ModelUse.UNLOADING)], 51),
        ([("hung", 50, 0.0, ModelUse.STUCK), OLD], 51),
    ],
)
def test_nobody_leaves_for_nothing(held: list[tuple[str, int, float, ModelUse]], need: int) -> None:
    """Where it would not fit even if all left that may, that is said before anybody does."""
    with pytest.raises(OverBudgetError):
        room(*held).next_to_evict("new", need)


def test_no_limit_takes_all() -> None:
    """Without a budget everything fits."""
    assert room(OLD, FIXED, budget=0).next_to_evict("new", 10**15) is None


def test_refusal_has_all_figures() -> None:
    """Need, budget, who holds how much and why it stays, and what to do."""
    full = room(
        ("resnet50", 30 * MIB, 0.0, ModelUse.CONFIGURED), ("vgg16", 60 * MIB, 0.0, ModelUse.STUCK), budget=100 * MIB
    )
    with pytest.raises(OverBudgetError) as refused:
        full.next_to_evict("googlenet", 45 * MIB)
    assert str(refused.value) == (
        "googlenet needs about 45.0 MiB on cuda:0, whose budget is 100.0 MiB; vgg16 holds 60.0 MiB (stuck in a batch), "
        "resnet50 holds 30.0 MiB (configured); raise --memory-budget-mib, or name fewer models with --models"
    )


@pytest.mark.parametrize(
    ("held", "name"), [([], None), ([FIXED], None), ([FIXED, BUSY], "busy"), ([BUSY, OLD, YOUNG], "old")]
)
def test_oldest(held: list[tuple[str, int, float, ModelUse]], name: str | None) -> None:
    """Who leaves where a device itself says that memory lacks, whatever the budget says."""
    assert room(*held).least_recently_used() == name


@pytest.mark.parametrize("seed", range(200))
def test_unloading_ends_with_room_or_touches_nothing(seed: int) -> None:
    """Over random devices: those who leave make room, each is needed, none was configured; or none leaves at all."""
    chance = random.Random(seed)
    held = tuple(
        ModelMemory(f"m{number}", chance.randint(1, 40), chance.random(), chance.choice(list(ModelUse)))
        for number in range(6)
    )
    before = DeviceMemory("cpu", sum(one.size_bytes for one in held) + chance.randint(0, 20), held)
    need, now, left = chance.randint(1, 150), before, list[ModelMemory]()
    try:
        while (name := now.next_to_evict("new", need)) is not None:
            [gone] = [one for one in now.models if one.name == name]
            left.append(gone)
            now = DeviceMemory(now.device, now.budget_bytes, tuple(one for one in now.models if one is not gone))
    except OverBudgetError:
        assert left == []
        return
    assert now.used_bytes + need <= now.budget_bytes
    assert all(one.use in (ModelUse.IDLE, ModelUse.IN_USE) for one in left)
    assert not left or now.used_bytes + left[-1].size_bytes + need > now.budget_bytes
