"""Settings: what they take from a command line and an environment, and what they refuse."""

from enum import Enum
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from service.cli.options import options, settings_from
from service.common.settings import Settings
from service.common.types import ImageLimits


@click.command()
@options(*Settings.model_fields)
def show(**values: Any) -> None:
    """Print the settings as the server would get them."""
    click.echo(settings_from(values).model_dump_json())


def parsed(*arguments: str, env: dict[str, str] | None = None) -> Settings:
    """The settings of that command line in that environment."""
    result = CliRunner().invoke(show, arguments, env={"TOPFIVE_CACHE": None, **(env or {})})  # which tests have set
    assert result.exit_code == 0, result.output
    return Settings.model_validate_json(result.output)


def test_defaults() -> None:
    """Without anything the defaults hold, and they are those that the README names."""
    assert parsed() == Settings()
    assert Settings().models == ("googlenet",)
    assert (Settings().port, Settings().grpc_port) == (8000, 8001)
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("googlenet", ("googlenet",)),
        ("a,b", ("a", "b")),
        (" b , a,", ("b", "a")),
        ("a,b,a", ("a", "b")),
    ],
)
def test_models(text: str, models: tuple[str, ...]) -> None:
    """Models are separated by commas, in the order given, each once; option and variable read alike."""
    assert Settings.model_validate({"models": text}).models == models
    assert parsed("--models", text).models == models
    assert parsed(env={"TOPFIVE_MODELS": text}).models == models
    assert Settings(models=models).models == models


def test_option_wins() -> None:
    """An option on the command line goes before the variable."""
    assert parsed("--port", "1", env={"TOPFIVE_PORT": "2", "TOPFIVE_GRPC_PORT": "3"}).port == 1
    assert parsed("--port", "1", env={"TOPFIVE_PORT": "2", "TOPFIVE_GRPC_PORT": "3"}).grpc_port == 3


def other(default: object) -> object:
    """A value of the same kind that a setting takes as well."""
    match default:
        case tuple():
            return ("a", "b")
        case Enum():
            return list(type(default))[-1]
        case Path():
            return Path("/srv/models")
        case int():
            return default + 1
        case float():
            return default + 0.5
    return "0.0.0.0"


@pytest.mark.parametrize("name", Settings.model_fields.keys())
def test_every_setting(name: str) -> None:
    """Each setting has an option and a variable, with another value than its default, and says what it means."""
    value = other(Settings.model_fields[name].default)
    text = ",".join(value) if isinstance(value, tuple) else f"{value}"
    expected = Settings.model_validate({name: value})

    assert expected != Settings()
    assert parsed(f"--{name.replace('_', '-')}", text) == expected
    assert parsed(env={f"TOPFIVE_{name.upper()}": text}) == expected
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", ""),
        ("models", " , "),
        ("models", []),
        ("models", [1]),
        ("models", None),
        ("port", 65536),
        ("port", -1),
        ("port", "http"),
        ("grpc_port", 1_000_000),
        ("runtime", "tvm"),
        ("precision", "fp8"),
        ("cpus", -1),
        ("max_batch", -1),
        ("capacity", 0),
        ("max_image_bytes", 0),
        ("max_image_bytes", (64 << 20) + 1),
        ("max_image_pixels", 0),
        ("timeout_s", 0),
        ("timeout_s", "nan"),
        ("drain_s", -1),
        ("log_level", "loud"),
        ("prot", 8000),
    ],
)
def test_refused(name: str, value: object) -> None:
    """A value that cannot be, or a setting that does not exist, is an error that names it."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})

    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", ","], "--models: Value error, name at least one model"),
        (["--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (
            ["--max-batch", "-1", "--timeout-s", "0"],
            "--max-batch: Input should be greater than or equal to 0; --timeout",
        ),
    ],
)
def test_usage_error(arguments: list[str], message: str) -> None:
    """On the command line a bad value is a usage error that names its option, without a traceback."""
    result = CliRunner().invoke(show, arguments)

    assert result.exit_code == 2
    assert message in result.output


def test_frozen() -> None:
    """Settings are made once and never changed."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_limits() -> None:
    """The limits of the image intake come from the settings, and their defaults agree."""
    assert Settings(max_image_bytes=10, max_image_pixels=20).limits == ImageLimits(max_bytes=10, max_pixels=20)
    assert Settings().limits == ImageLimits()
