"""Selects the engines to build and their GPUs from the command line, and checks them before anything is exported."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from export.common import ExportError
from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from service.common.gpus import Card, Cards
from service.common.types import Precision

TURING = ComputeCapability(7, 5)
THIS = "this"
PRECISIONS = (Precision.FP16, Precision.F32, Precision.INT8)
DEFAULT_PROFILE = BatchProfile(smallest=1, best=8, largest=32)
# The RTX GPUs of the last four generations
_RTX = (TURING, ComputeCapability(8, 6), ComputeCapability(8, 9), ComputeCapability(12, 0))
_LARGEST_BATCH = 1024  # as of the service's own --max-batch

Group = tuple[ComputeCapability, ...]
"""Compute capabilities of GPUs that share a plan."""


class BuildRequestError(ExportError):
    """This engine cannot be built here."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The engines to build: one plan for each of `groups`.

    `profile` is None if the user gives no batch sizes. `card` is the GPU that builds the plans, or None if the build
    needs no GPU. `cache` is the folder for measured times of kernels. `calibration` is the folder of photos for int8,
    else None.
    """

    flavour: Flavour
    precision: Precision
    groups: tuple[Group, ...]
    cache: Path
    profile: BatchProfile | None = None
    card: Card | None = None
    calibration: Path | None = None

    def profile_for(self, max_batch: int | None) -> BatchProfile:
        """The batch sizes for a graph that takes up to `max_batch`; raises BuildRequestError if it takes fewer."""
        if max_batch is None:
            return self.profile or DEFAULT_PROFILE
        if self.profile is None:
            sizes = {name: min(size, max_batch) for name, size in DEFAULT_PROFILE.model_dump().items()}
            return BatchProfile(**sizes)
        if self.profile.largest > max_batch:
            raise BuildRequestError(f"its graph takes batches of {max_batch} at most; use --batch with no larger size")
        return self.profile


def parse_profile(text: str) -> BatchProfile:
    """The smallest, best and largest batch size in a text such as `1,8,32`. Raises BuildRequestError."""
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise BuildRequestError(
            f"--batch {text}: write three sizes, smallest, best and largest, such as 1,8,32"
        ) from None
    if not 1 <= smallest <= best <= largest <= _LARGEST_BATCH:
        raise BuildRequestError(f"--batch {text}: sizes ascend from 1 to at most {_LARGEST_BATCH}, such as 1,8,32")
    return BatchProfile(smallest=smallest, best=best, largest=largest)


def tensorrt_targets(text: str | None, cards: Cards) -> tuple[tuple[Group, ...], Card]:
    """The target of TensorRT and its GPU, on which it both builds and runs. Raises BuildRequestError."""
    if not cards.found:
        raise BuildRequestError(
            f"TensorRT builds an engine on the GPU that runs it, and there is none here ({cards.reason}); "
            f"--engine {Flavour.TENSORRT_RTX} builds without one"
        )
    card = cards.found[0]
    if text is not None and (asked := _parse_targets(text, cards)) != {card.target}:
        raise BuildRequestError(
            f"TensorRT builds only for the GPU of this machine, {card.name} ({card.target}), not for "
            f"{_listed(asked)}; use --target {THIS} there, or --engine {Flavour.TENSORRT_RTX}"
        )
    return ((card.target,),), card


def rtx_targets(
    text: str | None, precision: Precision, known: Collection[ComputeCapability], cards: Cards
) -> tuple[Group, ...]:
    """The targets of TensorRT for RTX in groups that share a plan: Turing apart, as NVIDIA advises, and all others.

    The default is the GPU of this machine, or without one every RTX GPU that runs `precision`. Raises
    BuildRequestError for a target that is not in `known` or does not run `precision`.
    """
    if text is not None:
        targets = _parse_targets(text, cards)
    elif cards.found:
        targets = {cards.found[0].target}
    else:
        targets = {target for target in _RTX if precision is Precision.FP16 or target != TURING}
    if unknown := targets - set(known):
        raise BuildRequestError(f"{Flavour.TENSORRT_RTX} builds for {_listed(known)}, not for {_listed(unknown)}")
    if TURING in targets and precision is Precision.F32:
        raise BuildRequestError(
            f"{Flavour.TENSORRT_RTX} multiplies no matrices in f32 on Turing ({TURING}); use --precision fp16 there, "
            f"or --engine {Flavour.TENSORRT} on the GPU itself"
        )
    groups = (tuple(sorted(targets & {TURING})), tuple(sorted(targets - {TURING})))
    return tuple(group for group in groups if group)


def _parse_targets(text: str, cards: Cards) -> set[ComputeCapability]:
    """From `sm75,sm86` or `this`."""
    found = set()
    for part in (part.strip() for part in text.split(",")):
        if part != THIS:
            try:
                found.add(ComputeCapability.parse(part))
            except ValueError as error:
                raise BuildRequestError(f"--target {text}: {error}, or {THIS}") from None
        elif cards.found:
            found.add(cards.found[0].target)
        else:
            raise BuildRequestError(
                f"--target {THIS}: there is no GPU here ({cards.reason}); name what to build for: sm75"
            )
    return found


def _listed(targets: Collection[ComputeCapability]) -> str:
    return ", ".join(map(str, sorted(targets)))
