"""What engine to build for which cards: the words of the command line, checked before anything is exported."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from service.common.gpus import Card, Cards
from service.common.types import Precision

TURING = ComputeCapability(7, 5)
THIS = "this"
PRECISIONS = (Precision.FP16, Precision.F32, Precision.INT8)
DEFAULT_PROFILE = BatchProfile(smallest=1, best=8, largest=32)
_AHEAD = (
    TURING,
    ComputeCapability(8, 6),
    ComputeCapability(8, 9),
    ComputeCapability(12, 0),
)  # the RTX cards of the last four generations
_LARGEST_BATCH = 1024  # as of the service's own --max-batch


class OrderError(Exception):
    """No such engine can be built here; the message says why and what to ask for instead."""


@dataclass(frozen=True, slots=True)
class Order:
    """Engines to build: a plan for each of `groups`, which holds the cards that share it.

    `profile` is None where nobody named batch sizes: then it is the default as far as the graph allows. `card` is the
    one that the engine is built on, None where none is needed.
    """

    flavour: Flavour
    precision: Precision
    groups: tuple[tuple[ComputeCapability, ...], ...]
    cache: Path
    profile: BatchProfile | None = None
    card: Card | None = None
    calibration: Path | None = None

    def profile_for(self, max_batch: int | None) -> BatchProfile:
        """The batch sizes for a graph that takes up to `max_batch`; raises OrderError where more were asked for."""
        if max_batch is None:
            return self.profile or DEFAULT_PROFILE
        if self.profile is None:
            sizes = (min(size, max_batch) for size in DEFAULT_PROFILE.model_dump().values())
            return BatchProfile(**dict(zip(BatchProfile.model_fields, sizes, strict=True)))
        if self.profile.largest > max_batch:
            raise OrderError(f"its graph takes batches of {max_batch} at most; use --batch with no larger size")
        return self.profile


def parse_profile(text: str) -> BatchProfile:
    """From `1,8,32`: smallest, best and largest. Raises OrderError."""
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise OrderError(f"--batch {text}: write three sizes, smallest, best and largest, such as 1,8,32") from None
    if not 1 <= smallest <= best <= largest <= _LARGEST_BATCH:
        raise OrderError(f"--batch {text}: sizes ascend from 1 to at most {_LARGEST_BATCH}, such as 1,8,32")
    return BatchProfile(smallest=smallest, best=best, largest=largest)


def on_this_card(text: str | None, cards: Cards) -> tuple[tuple[tuple[ComputeCapability, ...], ...], Card]:
    """Targets for TensorRT, which builds on the card that runs the engine, and that card. Raises OrderError."""
    if not cards.found:
        raise OrderError(
            f"TensorRT builds an engine on the card that runs it, and there is none here ({cards.reason}); "
            f"--engine {Flavour.TENSORRT_RTX} builds without one"
        )
    card = cards.found[0]
    if text is not None and (asked := _targets(text, cards)) != {card.target}:
        raise OrderError(
            f"TensorRT builds for the card at hand alone, {card.name} ({card.target}), not for {_words(asked)}; "
            f"use --target {THIS} there, or --engine {Flavour.TENSORRT_RTX}"
        )
    return ((card.target,),), card


def ahead(
    text: str | None, precision: Precision, known: Collection[ComputeCapability], cards: Cards
) -> tuple[tuple[ComputeCapability, ...], ...]:
    """Targets for TensorRT for RTX, in groups that share a plan: Turing apart, as NVIDIA advises, and all others.

    Where nothing is asked for, they are the card at hand, and without one every RTX card that runs `precision`. Raises
    OrderError for what is not in `known`, or does not run `precision`.
    """
    if text is not None:
        targets = _targets(text, cards)
    elif cards.found:
        targets = {cards.found[0].target}
    else:
        targets = {target for target in _AHEAD if precision is Precision.FP16 or target != TURING}
    if unknown := targets - set(known):
        raise OrderError(f"{Flavour.TENSORRT_RTX} builds for {_words(known)}, not for {_words(unknown)}")
    if TURING in targets and precision is Precision.F32:
        raise OrderError(
            f"{Flavour.TENSORRT_RTX} multiplies no matrices in f32 on Turing ({TURING}); use --precision fp16 there, "
            f"or --engine {Flavour.TENSORRT} on the card itself"
        )
    groups = (tuple(sorted(targets & {TURING})), tuple(sorted(targets - {TURING})))
    return tuple(group for group in groups if group)


def _targets(text: str, cards: Cards) -> set[ComputeCapability]:
    """From `sm75,sm86` or `this`."""
    found = set()
    for part in (part.strip() for part in text.split(",")):
        if part != THIS:
            try:
                found.add(ComputeCapability.parse(part))
            except ValueError as error:
                raise OrderError(f"--target {text}: {error}, or {THIS}") from None
        elif cards.found:
            found.add(cards.found[0].target)
        else:
            raise OrderError(f"--target {THIS}: there is no card here ({cards.reason}); name what to build for: sm75")
    return found


def _words(targets: Collection[ComputeCapability]) -> str:
    return ", ".join(map(str, sorted(targets)))
