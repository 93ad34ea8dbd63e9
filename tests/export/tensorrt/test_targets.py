"""What `--engine`, `--target` and `--batch` ask for: which cards share a plan, and what is refused before a build."""

from pathlib import Path

import pytest

from export.tensorrt.targets import (
    DEFAULT_PROFILE,
    BuildRequest,
    BuildRequestError,
    parse_profile,
    rtx_targets,
    tensorrt_targets,
)
from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from service.common.gpus import Card, Cards
from service.common.types import Precision

SM75, SM86, SM89, SM90, SM120 = (
    ComputeCapability(7, 5),
    ComputeCapability(8, 6),
    ComputeCapability(8, 9),
    ComputeCapability(9, 0),
    ComputeCapability(12, 0),
)
KNOWN = (SM75, ComputeCapability(8, 0), SM86, SM89, SM120, ComputeCapability(12, 1))
NONE = Cards((), "CUDA driver version is insufficient for CUDA runtime version")
TURING = Cards((Card(0, "NVIDIA GeForce RTX 2080 Ti", SM75, 11 << 30, 10 << 30),))


def order(profile: BatchProfile | None = None) -> BuildRequest:
    """An order of those batch sizes."""
    return BuildRequest(Flavour.TENSORRT_RTX, Precision.FP16, ((SM75,),), Path("cache"), profile)


def test_batch_sizes() -> None:
    """Three ascending sizes are the smallest, the best and the largest batch; equal ones are allowed."""
    assert parse_profile("1,8,32") == BatchProfile(smallest=1, best=8, largest=32) == DEFAULT_PROFILE
    assert parse_profile(" 4, 4,4 ") == BatchProfile(smallest=4, best=4, largest=4)


@pytest.mark.parametrize(
    "text", ["", "8", "1,8", "1,8,32,64", "8,1,32", "1,32,8", "0,1,2", "-1,1,2", "1,2,1025", "1,b,3"]
)
def test_no_batch_sizes(text: str) -> None:
    """Anything else is refused with the right form."""
    with pytest.raises(BuildRequestError, match=r"such as 1,8,32"):
        parse_profile(text)


def test_batch_sizes_of_a_graph_with_a_largest_batch() -> None:
    """The default gives way to what the graph takes; a size that was asked for does not, and is refused."""
    assert order().profile_for(None) == DEFAULT_PROFILE
    assert order().profile_for(4) == BatchProfile(smallest=1, best=4, largest=4)
    assert order(parse_profile("1,2,4")).profile_for(4) == BatchProfile(smallest=1, best=2, largest=4)
    with pytest.raises(BuildRequestError, match="batches of 4 at most"):
        order(parse_profile("1,2,8")).profile_for(4)


@pytest.mark.parametrize(
    ("text", "precision", "groups"),
    [
        (None, Precision.FP16, ((SM75,), (SM86, SM89, SM120))),
        (None, Precision.F32, ((SM86, SM89, SM120),)),
        (None, Precision.INT8, ((SM86, SM89, SM120),)),
        ("sm75", Precision.FP16, ((SM75,),)),
        ("sm120,sm86", Precision.F32, ((SM86, SM120),)),
        ("sm89, sm75,sm86,sm89", Precision.FP16, ((SM75,), (SM86, SM89))),
    ],
)
def test_ahead_of_time(
    text: str | None, precision: Precision, groups: tuple[tuple[ComputeCapability, ...], ...]
) -> None:
    """Turing has a plan of its own, all others share one; the default without a card is what runs the precision."""
    assert rtx_targets(text, precision, KNOWN, NONE) == groups


@pytest.mark.parametrize("text", [None, "this"])
def test_ahead_of_time_with_a_card(text: str | None) -> None:
    """With a card, that card is the default, and what `this` means."""
    assert rtx_targets(text, Precision.FP16, KNOWN, TURING) == ((SM75,),)


def test_this_without_a_card() -> None:
    """`this` is refused with CUDA's reason."""
    with pytest.raises(BuildRequestError, match=r"no GPU here \(CUDA driver version is insufficient"):
        rtx_targets("this", Precision.FP16, KNOWN, NONE)


def test_unknown_targets() -> None:
    """What the builder does not know is refused with all that it does; what is no target, with the right form."""
    with pytest.raises(BuildRequestError, match=r"builds for sm75, sm80, sm86, sm89, sm120, sm121, not for sm61, sm90"):
        rtx_targets("sm90,sm86,sm61", Precision.FP16, KNOWN, NONE)
    with pytest.raises(BuildRequestError, match=r"--target 8\.6: .* write sm75, sm86, sm89 or sm120, or this"):
        rtx_targets("8.6", Precision.FP16, KNOWN, NONE)


@pytest.mark.parametrize("text", ["sm75", "sm86,sm75"])
def test_f32_on_turing(text: str) -> None:
    """TensorRT for RTX has no f32 matrix product for Turing: refused before the build, with what to do."""
    with pytest.raises(BuildRequestError, match="use --precision fp16"):
        rtx_targets(text, Precision.F32, KNOWN, NONE)


@pytest.mark.parametrize("text", [None, "this", "sm75"])
def test_on_the_card(text: str | None) -> None:
    """TensorRT builds for the card of the machine, whichever way it is named."""
    assert tensorrt_targets(text, TURING) == (((SM75,),), TURING.found[0])


@pytest.mark.parametrize("text", ["sm86", "sm75,sm86"])
def test_other_cards(text: str) -> None:
    """TensorRT builds for no other card: refused with the name of the one that is there."""
    with pytest.raises(
        BuildRequestError, match=r"only for the GPU of this machine, NVIDIA GeForce RTX 2080 Ti \(sm75\)"
    ):
        tensorrt_targets(text, TURING)


def test_no_card() -> None:
    """Without a card there is no TensorRT engine: refused with CUDA's reason, and what builds without one."""
    with pytest.raises(
        BuildRequestError, match=r"none here \(CUDA driver .*\); --engine tensorrt-rtx builds without one"
    ):
        tensorrt_targets(None, NONE)
