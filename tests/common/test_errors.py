"""Errors by their codes, as they come from another server."""

import pytest

from service.common.errors import TABLE, BadRequest, Code, ModelNotFound, NotReady, TopfiveError, error_of


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_an_error(code: Code) -> None:
    """Each code of the table becomes its error, with the words of the other server."""
    error = error_of(code, "the reason")

    assert (error.code, error.detail) == (code, "the reason")
    assert error.translation is TABLE[code]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            NotReady("a cannot be loaded: /srv/art/a/1/model.onnx is missing"),
            "a cannot be loaded: .../model.onnx is missing",
        ),
        (
            NotReady("[Errno 2] No such file: '/srv/art-1/a/manifest.json'"),
            "[Errno 2] No such file: '.../manifest.json'",
        ),
        (
            ModelNotFound("run: topfive export a --artifacts /srv/artifacts"),
            "run: topfive export a --artifacts .../artifacts",
        ),
        (NotReady("/srv/a/b: f32 and/or f16 on ::1:8001"), ".../b: f32 and/or f16 on ::1:8001"),
        (ModelNotFound("no model b; GET /models lists them"), "no model b; GET /models lists them"),
        (BadRequest("send it to /predict?model=a"), "send it to /predict?model=a"),
    ],
)
def test_paths_are_not_told(error: TopfiveError, told: str) -> None:
    """Clients see no folder of the server; addresses of requests stay as they are."""
    assert error.told == told
