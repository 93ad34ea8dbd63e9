"""The command `topfive`. A subcommand is imported only when it is used, so that each loads only what it needs.

Other packages add subcommands by the entry point group `topfive.commands`.
"""

from importlib import import_module
from importlib.metadata import entry_points

import click

_OWN = {
    "classify": "Classify many images into one results file.",
    "compare": "Classify images with many models side by side.",
    "doctor": "Show what serve would find on this machine.",
    "evaluate": "Measure the accuracy of models on your own images.",
    "gateway": "Serve REST in front of inference servers.",
    "layers": "Print the layers of a network with their costs.",
    "models": "List all models, exported or not.",
    "predict": "Classify images, here or by a server.",
    "serve": "Serve exported models over REST and gRPC.",
    "show": "Describe one model.",
    "tune": "Measure how models run best on this machine's CPU.",
}
_SUMMARIES = {
    **_OWN,
    "bench": "Measure throughput and latency of a server.",
    "export": "Export models for serving, and check each against PyTorch.",
    "import": "Import an ONNX classifier of any origin.",
}
_GROUP = "topfive.commands"


class _Commands(click.Group):
    """The subcommands, which are modules of this package, and those of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_OWN, *entry_points(group=_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The name with its summary, for help and completion: it does not run."""
        known = cmd_name in self.list_commands(ctx)
        return click.Command(cmd_name, short_help=_SUMMARIES.get(cmd_name, "")) if known else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that runs, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _load(str(name)), rest


def _load(name: str) -> click.Command:
    if name in _OWN:
        command = getattr(import_module(f"service.cli.{name}"), f"{name}_command")
    else:
        [found] = entry_points(group=_GROUP, name=name)
        command = found.load()
    assert isinstance(command, click.Command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="topfive")
def main() -> None:
    """A photo goes in, the five best ImageNet classes come out."""
