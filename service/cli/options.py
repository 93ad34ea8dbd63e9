"""Options of the command line made from `Settings`, and settings made from options."""

import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from service.common.settings import Settings

Command = Callable[..., Any]


class FiniteRange(click.FloatRange):
    """A range of numbers that end: click's lets `nan` through, and infinity where nothing bounds it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def option(flag: str, *names: str, variable: str = "", **attributes: Any) -> Callable[[Command], Command]:
    """A click option with its variable, both shown in the help with the default; `variable` is named as the flag is."""
    variable = variable or f"TOPFIVE_{flag.removeprefix('--').replace('-', '_').upper()}"
    shown = "off" if attributes.get("is_flag") else True
    return click.option(flag, *names, envvar=variable, show_envvar=True, show_default=shown, **attributes)


def options(*names: str) -> Callable[[Command], Command]:
    """Click options for these settings: name, default, meaning and variable come from `Settings`."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            field = Settings.model_fields[name]
            default = field.default
            if isinstance(default, tuple):
                default = ",".join(default)
            choices = [item.value for item in type(default)] if isinstance(default, Enum) else None
            command = option(
                f"--{name.replace('_', '-')}",
                type=click.Choice(choices) if choices else str if isinstance(default, (str, Path)) else type(default),
                default=str(default.value) if isinstance(default, Enum) else default,
                help=field.description,
            )(command)
        return command

    return decorate


def settings_from(values: dict[str, Any]) -> Settings:
    """Validated settings; a value that does not fit is a usage error that names its option."""
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}" for problem in error.errors()
        )
        raise click.UsageError(problems) from error
