"""The command `topfive`. Each subcommand is imported when it is asked for: a server needs no tables, nor they a server.

Subcommands of other packages come in by the entry point group `topfive.commands`.
"""

from importlib import import_module
from importlib.metadata import entry_points

import click

_OWN = {
    "classify": "service.offline.classify_command",
    "compare": "service.cli.compare",
    "doctor": "service.cli.doctor",
    "evaluate": "service.offline.evaluate_command",
    "gateway": "service.cli.gateway",
    "layers": "service.cli.layers",
    "models": "service.cli.models",
    "predict": "service.cli.predict",
    "serve": "service.cli.serve",
    "show": "service.cli.show",
    "tune": "service.offline.tuning.command",
}
_FOREIGN = "topfive.commands"


class _Group(click.Group):
    """Finds the commands of the service in its modules, those of other packages by their entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*_OWN, *(point.name for point in entry_points(group=_FOREIGN))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported when it is asked for."""
        if cmd_name in _OWN:
            command = getattr(import_module(_OWN[cmd_name]), f"{cmd_name}_command")
            assert isinstance(command, click.Command)
            return command
        for point in entry_points(group=_FOREIGN, name=cmd_name):
            command = point.load()
            assert isinstance(command, click.Command)
            return command
        return None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="topfive")
def main() -> None:
    """A photo goes in, the five best ImageNet classes come out."""
