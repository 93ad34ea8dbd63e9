"""Errors by their codes, as they come from another server."""

import pytest

from service.common.errors import TABLE, Code, error_of


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_an_error(code: Code) -> None:
    """Each code of the table becomes its error, with the words of the other server."""
    error = error_of(code, "the reason")

    assert (error.code, error.detail) == (code, "the reason")
    assert error.translation is TABLE[code]
