"""The cards of the machine: as CUDA tells them, and with its own words where there are none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from models.artifact.engine_plan import ComputeCapability
from service.common.gpus import Card, Cards, cards, driver_version


def cuda(count: int, *, error: int = 0) -> Any:
    """A CUDA runtime with `count` cards of 11 GB, or one that answers every call with `error`."""
    properties = SimpleNamespace(name=b"NVIDIA GeForce RTX 2080 Ti\0\0", major=7, minor=5)
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=0),
        cudaGetErrorString=lambda _: (0, b"no CUDA-capable device is detected"),
        cudaGetDeviceCount=lambda: (error,) if error else (0, count),
        cudaGetDeviceProperties=lambda _: (0, properties),
        cudaSetDevice=lambda _: (0,),
        cudaMemGetInfo=lambda: (0, 10 << 30, 11 << 30),
    )


def test_cards() -> None:
    """Each card has its number, its name, its compute capability and its memory."""
    found = cards(cuda(2))
    assert [card.index for card in found.found] == [0, 1]
    assert found.found[1] == Card(1, "NVIDIA GeForce RTX 2080 Ti", ComputeCapability(7, 5), 11 << 30, 10 << 30)
    assert found.reason == ""


def test_no_cards() -> None:
    """Without a card the result has the reason, that of CUDA where it gave one."""
    assert cards(cuda(0)) == Cards((), "there is no GPU")
    assert cards(cuda(1, error=100)) == Cards((), "no CUDA-capable device is detected")


def test_one_card_of_two() -> None:
    """A card that is broken or in use does not hide the others; the result has the reason why it is missing."""
    runtime = cuda(2)
    runtime.cudaSetDevice = lambda index: (46,) if index == 0 else (0,)
    runtime.cudaGetErrorString = lambda _: (0, b"all CUDA-capable devices are busy or unavailable")
    found = cards(runtime)
    assert [card.index for card in found.found] == [1]
    assert found.reason == "GPU 0 cannot be used: all CUDA-capable devices are busy or unavailable"


def test_this_machine() -> None:
    """The real binding answers on any machine, with a card or without."""
    found = cards()
    assert bool(found.found) is not bool(found.reason)


def test_driver(tmp_path: Path) -> None:
    """The version of the kernel driver is read from its own file."""
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Tue Aug 19 2026\nGCC version: 12\n")
    assert driver_version(file) == "580.82.07"
