"""Models as tensors: base64 of any length."""

import base64

import pytest

from service.inference.tensors import from_base64


@pytest.mark.parametrize("size", [0, 1, 786_431, 786_432, 786_433, 3_000_000])
def test_base64(size: int) -> None:
    """The bytes come back, whether their base64 is one piece or many."""
    content = bytes(range(256)) * (size // 256 + 1)

    assert from_base64(base64.b64encode(content[:size]).decode()) == content[:size]


@pytest.mark.parametrize("text", ["a", "no base64!", "A" * (1 << 20) + "é", "A" * ((1 << 20) + 3)])
def test_no_base64(text: str) -> None:
    """Text that is no base64, in whichever piece, is an error."""
    with pytest.raises(ValueError, match=r"[a-z]"):
        from_base64(text)
