"""Settings: what they take from a command line and an environment, and what they refuse."""

from enum import Enum
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from service.cli.options import options, settings_from
from service.cli.serve import serve_command
from service.common.settings import Settings
from service.common.types import ImageLimits
from tests.fleet import copy_model


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
    """The defaults are those that the README names, and those of commands that read images without a server."""
    assert parsed() == Settings()
    assert Settings().host == "127.0.0.1"
    assert (Settings().port, Settings().grpc_port) == (8000, 8001)
    assert Settings().limits == ImageLimits()


def test_default_models(artifacts: Path, tmp_path: Path) -> None:
    """Without --models it is googlenet if that is exported, else the model that comes with topfive."""
    assert parsed("--artifacts", str(tmp_path / "none")).models == ("squeezenet1_1",)
    assert parsed("--artifacts", str(artifacts)).models == ("squeezenet1_1",), "only tiny is exported"
    copy_model(artifacts, "googlenet")
    assert parsed("--artifacts", str(artifacts)).models == ("googlenet",)


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
    assert parsed("--models", text).models == models
    assert parsed(env={"TOPFIVE_MODELS": text}).models == models


@pytest.mark.parametrize(
    ("arguments", "hosts"),
    [
        (["--host", "127.0.0.1"], ["localhost", "127.0.0.1", "[::1]", "127.0.0.1"]),
        (["--host", "localhost"], ["localhost", "127.0.0.1", "[::1]", "localhost"]),
        (["--host", "::1"], ["localhost", "127.0.0.1", "[::1]", "::1"]),
        (["--host", "0.0.0.0"], ["*"]),
        (["--host", "node7"], ["*"]),
        (["--host", "127.0.0.1", "--allowed-hosts", "*"], ["*"]),
        (["--allowed-hosts", "a.example,*.b.example", "--allowed-hosts", "c"], ["a.example", "*.b.example", "c"]),
    ],
)
def test_hosts(arguments: list[str], hosts: list[str]) -> None:
    """A server that only this machine reaches answers to this machine's names, any other to all, unless told."""
    assert list(parsed(*arguments).rest_access.hosts) == hosts


def other(default: object) -> object:
    """Another value of the same kind."""
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
        case "":
            return "/vision"
    return "0.0.0.0"


@pytest.mark.parametrize("name", Settings.model_fields.keys())
def test_every_setting(name: str) -> None:
    """Each setting has an option and a variable, of which the option wins; the help has its meaning and default."""
    default = Settings.model_fields[name].default
    value = other(default)
    default_text, text = (",".join(one) if isinstance(one, tuple) else f"{one}" for one in (default, value))
    expected = Settings.model_validate({name: value})

    assert expected != Settings()
    assert parsed(env={f"TOPFIVE_{name.upper()}": text}) == expected
    assert parsed(f"--{name.replace('_', '-')}", text, env={f"TOPFIVE_{name.upper()}": default_text}) == expected
    [option] = [one for one in serve_command.params if one.name == name]
    assert isinstance(option, click.Option)
    assert option.help == Settings.model_fields[name].description
    assert option.help
    assert option.show_default


@pytest.mark.parametrize("value", ["tcp://10.96.0.1:8000", "udp://10.96.0.1:53", "sctp://[fd00::1]:8000"])
@pytest.mark.parametrize(("name", "service"), [("port", "topfive"), ("grpc_port", "topfive-grpc")])
def test_service_of_kubernetes(name: str, service: str, value: str) -> None:
    """A variable that Kubernetes sets beside a Service leaves the default and gives one warning."""
    variable, flag = f"TOPFIVE_{name.upper()}", f"--{name.replace('_', '-')}"
    result = CliRunner().invoke(show, env={variable: value})

    assert getattr(Settings.model_validate_json(result.stdout), name) == getattr(Settings(), name)
    [warning] = result.stderr.splitlines()
    assert f"{variable}={value}" in warning
    assert f"a Service called {service};" in warning
    assert flag in warning
    assert getattr(parsed(flag, "81", env={variable: value}), name) == 81


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", ""),
        ("models", [1]),
        ("port", 65536),
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
        ("root_path", "vision"),
        ("root_path", "//evil.example"),
        ("root_path", "/vision/"),
        ("allowed_hosts", "a*"),
        ("prot", 8000),
    ],
)
def test_refused(name: str, value: object) -> None:
    """A value out of range, or a setting that does not exist, is an error that names it."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})

    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--models", ","], {}, "--models: Value error, name at least one model"),
        (["--port", "70000"], {}, "--port: Input should be less than or equal to 65535"),
        (
            ["--max-batch", "-1", "--timeout-s", "0"],
            {},
            "--max-batch: Input should be greater than or equal to 0; --timeout",
        ),
        ([], {"TOPFIVE_MAX_BATCH": "-1"}, "--max-batch: Input should be greater than or equal to 0"),
        ([], {"TOPFIVE_RUNTIME": "abacus"}, "'--runtime'"),
    ],
)
def test_usage_error(arguments: list[str], env: dict[str, str], message: str) -> None:
    """A bad value of an option or a variable is a usage error that names the option, without a traceback."""
    result = CliRunner().invoke(show, arguments, env=env)

    assert result.exit_code == 2
    assert message in result.output
