"""Errors by their codes, as they come from another server."""

import pytest

from service.common.errors import TABLE, Code, EngineError, Overloaded, error_of


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_an_error(code: Code) -> None:
    """Each code of the table becomes the error that has it, with the words that came along."""
    error = error_of(code, "the reason")

    assert (error.code, error.detail) == (code, "the reason")
    assert error.translation is TABLE[code]


def test_errors_in_detail() -> None:
    """An overload says when to come back; a code of a later version is a failure that names it."""
    overloaded = error_of("overloaded", "full", 4.5)
    unknown = error_of("tired", "the server sleeps")

    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 4.5
    assert type(unknown) is EngineError
    assert unknown.detail == "tired: the server sleeps"
