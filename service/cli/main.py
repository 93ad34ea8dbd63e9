"""The command `topfive`. A subcommand is imported only when it is used, so that a server loads only what it needs.

Other packages add subcommands by the entry point group `topfive.commands`.
"""

from importlib import import_module
from importlib.metadata import entry_points

import click

_COMMANDS = (
    *("classify", "compare", "doctor", "evaluate", "gateway", "layers"),
    *("models", "predict", "serve", "show", "tune"),
)
_GROUP = "topfive.commands"


class _Commands(click.Group):
    """The subcommands, which are modules of this package, and those of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *entry_points(group=_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            command = getattr(import_module(f"service.cli.{cmd_name}"), f"{cmd_name}_command")
        elif found := entry_points(group=_GROUP, name=cmd_name):
            command = next(iter(found)).load()
        else:
            return None
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="topfive")
def main() -> None:
    """A photo goes in, the five best ImageNet classes come out."""
