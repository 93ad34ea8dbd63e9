"""Finds the devices to open engines on: the GPUs, if the runtime may use them, and the CPU."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from service.common.gpus import Card, Cards
from service.common.types import Runtime
from service.engines.base import CPU
from service.engines.selection.opening import open_engine
from service.engines.selection.select import ON_CARDS, ORDER, EngineOptions
from service.repository.device_memory import Device, budget_bytes

log = logging.getLogger(__name__)


def devices(options: EngineOptions, budget_mib: int, find_cards: Callable[[], Cards]) -> list[Device]:
    """The devices for a runtime: every GPU, or the CPU, or for `auto` both. On the CPU `auto` then tries no GPU.

    A runtime that needs a GPU gets `cuda:0` if none is found, because opening the engine gives the best error message.
    CUDA is queried only if a GPU may be used, because that takes memory on each GPU.
    """
    if options.runtime not in (Runtime.AUTO, *ON_CARDS):
        return [_cpu(options, budget_mib)]
    cards = find_cards()
    if cards.found and cards.reason:
        log.warning("%s", cards.reason)  # if no GPU is found, opening an engine reports it
    found = [_on(card, options, budget_mib) for card in cards.found]
    if options.runtime is Runtime.AUTO:
        among = tuple(runtime for runtime in ORDER if runtime not in ON_CARDS) if found else ORDER
        return [*found, _cpu(replace(options, among=among), budget_mib)]
    return found or [Device("cuda:0", partial(open_engine, options=options), budget_bytes(budget_mib, None))]


def _on(card: Card, options: EngineOptions, budget_mib: int) -> Device:
    opener = partial(open_engine, options=replace(options, card=card))
    return Device(f"cuda:{card.index}", opener, budget_bytes(budget_mib, card.memory_bytes), options.batch_on_cards)


def _cpu(options: EngineOptions, budget_mib: int) -> Device:
    rows = options.on_cpu.slots * options.on_cpu.max_batch
    return Device(CPU, partial(open_engine, options=options), budget_bytes(budget_mib, None), rows)
