"""Where long work runs."""

import threading

import pytest

from service.common.tasks import apart

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("long", [False, True])
async def test_apart(long: bool) -> None:
    """Long work runs on another thread, and short work at once."""
    assert (await apart(long, threading.get_ident) != threading.get_ident()) is long
