"""The devices that engines are opened on: the cards of the machine and its CPU, each with its budget."""

from dataclasses import replace
from functools import partial

import pytest

from models.artifact.engine_plan import ComputeCapability
from service.common.gpus import Card, Cards
from service.common.types import Runtime
from service.engines.base import CPU
from service.engines.selection.select import ORDER, EngineOptions
from service.repository.device_discovery import devices

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
    """A runtime that runs on cards has the cards, one that runs on the CPU has the CPU, each with its budget."""
    listed = devices(EngineOptions(runtime), mib, lambda: found)
    assert [(one.name, one.budget_bytes) for one in listed] == expected


def test_a_card_that_is_missing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The log says why one of several cards cannot be used; where there is none at all, opening an engine says so."""
    devices(EngineOptions(), 0, lambda: replace(CARDS, reason="GPU 2 cannot be used: busy"))
    devices(EngineOptions(), 0, lambda: Cards((), "no driver"))
    assert caplog.messages == ["GPU 2 cannot be used: busy"]


def test_the_cpu_is_for_runtimes_of_the_cpu() -> None:
    """Beside cards the CPU tries no runtime of cards, so that a model goes to no card that refused it."""
    among = []
    for found in (CARDS, Cards(())):
        cpu = devices(EngineOptions(), 0, partial(Cards, found.found))[-1].open_engine
        assert isinstance(cpu, partial)
        among.append(cpu.keywords["options"].among)
    assert among == [(Runtime.OPENVINO, Runtime.ONNXRUNTIME), ORDER]


def test_cards_are_not_looked_for_in_vain() -> None:
    """A runtime of the CPU does not look for cards, because a look takes memory on every card."""

    def look() -> Cards:
        raise AssertionError("looked")

    assert [one.name for one in devices(EngineOptions(Runtime.OPENVINO), 0, look)] == [CPU]
