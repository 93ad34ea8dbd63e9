"""Fixtures: photos, an exported tiny network, and the material beside the project where it is there."""

import ctypes
import io
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from export.gate_images import PHOTOS

if TYPE_CHECKING:
    from tests.download_host import Host
    from tests.serving import Running

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


class NullReporter:
    """An export's progress that nobody watches."""

    def step(self, what: str) -> None:
        """Nothing."""

    def phase(self, what: str, done: int, total: int) -> None:
        """Nothing."""


@pytest.fixture(scope="session", autouse=True)
def _own_settings() -> None:
    """No setting of the user, nor of the Makefile, reaches a test."""
    for name in [name for name in os.environ if name.startswith("TOPFIVE_")]:
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> None:
    """Programs of the tests end at Ctrl-C, even where a shell started the tests in its background, ignoring it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t))


@pytest.fixture
def plain_signal_stack() -> None:
    """Signals of this thread run on its own stack.

    OpenVINO gives a thread that opens an engine another stack for signals, and does not take it back in every order in
    which engines close: a signal after that ends the process.
    """
    disabled = 2
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, disabled, 0)), None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands keep what this machine finds out in a folder of the tests, not in that of who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPFIVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Async tests share one loop: gRPC hands events that come late to whichever is there, for one that has closed."""
    yield  # noqa: PT022 - a generator holds the loop until the last test


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Host]":
    """A download host that no proxy stands before."""
    from tests.download_host import Host

    monkeypatch.setenv("no_proxy", "*")
    host = Host()
    yield host
    host.close()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG photo of a zebra."""
    return (PHOTOS / "zebra.jpeg").read_bytes()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Labelled photos and trained weights beside the checkout; a user's clone does not have them."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the trained weights of ../shared/data, which a clone does not have")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds `tiny`, untrained, exported for real; do not write into it."""
    from export.pipeline import export
    from export.weights_choice import WeightsChoice
    from models.catalog import CATALOG

    root = tmp_path_factory.mktemp("artifacts")
    export(CATALOG["tiny"], WeightsChoice.parse("untrained", None), root, NullReporter())
    return root


@pytest.fixture
def artifacts(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported` that the test may change."""
    root = tmp_path / "artifacts"
    shutil.copytree(exported, root)
    return root


@pytest.fixture(scope="module")
async def running(exported: Path) -> "AsyncIterator[Running]":
    """A service of `tiny` on a fake engine that takes images of 10 MB and of a megapixel.

    The tests of a file share it: they do not change its state.
    """
    from tests.fakes import FakeEngine
    from tests.serving import serving

    async with serving(exported, FakeEngine(), max_image_bytes=10_000_000, max_image_pixels=1_000_000) as started:
        yield started


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds `squeezenet1_1` with trained weights, so that answers can be right or wrong."""
    from export.pipeline import export
    from export.weights_choice import WeightsChoice
    from models.catalog import CATALOG

    root = tmp_path_factory.mktemp("trained")
    export(CATALOG["squeezenet1_1"], WeightsChoice.parse("auto", None), root, NullReporter())
    return root


def png(colour: int | tuple[int, ...] = 0, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> bytes:
    """A PNG of one colour."""
    shade = colour if isinstance(colour, tuple) or mode != "RGB" else (colour,) * 3
    file = io.BytesIO()
    Image.new(mode, size, shade).save(file, "PNG")
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Random RGB pixels, [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
