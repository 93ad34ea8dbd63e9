"""The options that commands share. Options of settings are made from `Settings`."""

import math
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from service.common.settings import Settings

Command = Callable[..., Any]

_SERVICE_LINKS = ("tcp://", "udp://", "sctp://")


ANSWER_OPTIONS = (
    *("artifacts", "cache", "runtime", "precision", "cpus"),
    *("decode", "max_image_bytes", "max_image_pixels", "timeout_s"),
)
"""The settings of commands that classify a few images in this process."""

BATCH_OPTIONS = (*ANSWER_OPTIONS[:5], "max_batch", *ANSWER_OPTIONS[5:-1])
"""The settings of commands that classify many."""


class FiniteRange(click.FloatRange):
    """A range of finite numbers. click lets `nan` and infinity through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _Option(click.Option):
    """An option that passes over what Kubernetes writes into its variable, as TOPFIVE_PORT for a Service `topfive`."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value is None or not value.startswith(_SERVICE_LINKS):
            return value
        service = str(self.envvar).removesuffix("_PORT").lower().replace("_", "-")
        click.echo(
            f"warning: {self.envvar}={value} is not read: Kubernetes sets it beside a Service called {service}; "
            f"use {self.opts[0]}, or set enableServiceLinks: false in the pod",
            err=True,
        )
        return None


def option(flag: str, *names: str, variable: str = "", **attributes: Any) -> Callable[[Command], Command]:
    """A click option with an environment variable, TOPFIVE_FLAG unless `variable` names another."""
    variable = variable or f"TOPFIVE_{flag.removeprefix('--').replace('-', '_').upper()}"
    attributes["show_default"] = not attributes.get("is_flag")
    return click.option(flag, *names, cls=_Option, envvar=variable, show_envvar=True, **attributes)


model_option = option("--model", help="Exported model, or ensemble:a+b for their average; else what serve would take")
top_k_option = option("--top-k", type=int, help="Number of classes; without it 5, or all if there are fewer")
crops_option = option(
    "--crops",
    type=click.Choice(("1", "10")),
    default="1",
    callback=lambda _context, _option, value: int(value),
    help="10 averages over corners, centre and their mirrors",
)


def options(*names: str) -> Callable[[Command], Command]:
    """Click options for these settings. Name, type, default and help come from `Settings`."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            field = Settings.model_fields[name]
            default, repeated = field.default, field.default == ()
            if isinstance(default, tuple) and not repeated:
                default = ",".join(default)
            kind: Any = str if repeated else type(default)
            if isinstance(default, Enum):
                kind, default = click.Choice([item.value for item in type(default)]), default.value
            elif isinstance(default, Path) or default is None:
                kind = click.Path(path_type=Path)
            flag = f"--{name.replace('_', '-')}"
            command = option(flag, type=kind, default=default, multiple=repeated, help=field.description)(command)
        return command

    return decorate


def server_options(command: Command) -> Command:
    """The options of a command that may ask a server."""
    command = option("--api-key", help="API key for --server, if it asks for one")(command)
    return option("--server", help="URL of a running server that answers, such as http://localhost:8000")(command)


def settings_from(values: dict[str, Any]) -> Settings:
    """Validated settings. Raises click.UsageError, which names the option, if a value does not fit."""
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}" for problem in error.errors()
        )
        raise click.UsageError(problems) from error


def split_names(values: Iterable[str]) -> list[str]:
    """Split the values of an option that may be repeated, and may hold several names: a,b."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
