"""The command `topfive`. A subcommand is imported only when it is used, so that each loads only what it needs.

Other packages add subcommands by the entry point group `topfive.commands`.
"""

import os
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from shutil import get_terminal_size

import click

from service.cli.variables import misspelt

_GROUPS = {
    "Classify": {
        "predict": "Classify images, here or by a server.",
        "compare": "Classify images with many models side by side.",
        "classify": "Classify many images into one results file.",
    },
    "Models": {
        "models": "List all models, exported or not.",
        "show": "Describe one model.",
        "layers": "Print the layers of a network with their costs.",
        "export": "Export models for serving, and check each against PyTorch.",
        "import": "Import an ONNX classifier of any origin.",
    },
    "Serve": {
        "serve": "Serve exported models over REST and gRPC.",
        "gateway": "Serve REST in front of inference servers.",
        "doctor": "Show what serve would find on this machine.",
    },
    "Measure": {
        "evaluate": "Measure the accuracy of models on your own images.",
        "tune": "Measure how models run best on this machine's CPU.",
        "bench": "Measure throughput and latency of a server.",
    },
}
_SUMMARIES = {name: summary for group in _GROUPS.values() for name, summary in group.items()}
EXAMPLES = {
    "predict": ("cat.jpg --model resnet50", "https://example.org/cat.jpg --server http://localhost:8000"),
    "compare": ("cat.jpg", "cat.jpg --model alexnet,vgg16,resnet50 --crops 10"),
    "classify": ("photos/ --out answers.csv", "cat.jpg dog.jpg --model resnet50 --out answers.jsonl"),
    "models": ("", "--json"),
    "show": ("googlenet", "resnet50 --json"),
    "layers": ("vgg16", "googlenet_2014 --stages"),
    "export": ("googlenet resnet50", "squeezenet1_1 --weights mine.safetensors"),
    "import": ("own.onnx --name own --recipe recipe.toml", "own.onnx --name own --recipe r.toml --labels l.csv"),
    "serve": ("", "--models googlenet,resnet50 --host 0.0.0.0 --api-keys-file keys.toml"),
    "gateway": ("--inference localhost:8001", "--inference a.example:8001 --inference b.example:8001"),
    "doctor": ("", "--models resnet50"),
    "evaluate": ("photos/ --model googlenet", "labels.csv --model googlenet,resnet50 --crops 10"),
    "tune": ("googlenet", "googlenet resnet50"),
    "bench": ("http://localhost:8000 --image cat.jpg", "localhost:8001 --api grpc --rate 50,100,200"),
}
"""Arguments of each command, for the end of its help."""

_ENTRY_POINTS = "topfive.commands"


class _Commands(click.Group):
    """The subcommands, which are modules of this package, and those of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        added = entry_points(group=_ENTRY_POINTS).names
        own = {path.stem for path in Path(__file__).parent.iterdir()} & _SUMMARIES.keys()
        return [*(name for name in _SUMMARIES if name in own | added), *sorted(added - _SUMMARIES.keys())]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in groups, with those of packages that are not known here at the end."""
        names = self.list_commands(ctx)
        others = {name: "" for name in names if name not in _SUMMARIES}
        for title, group in (*_GROUPS.items(), ("Others", others)):
            if rows := [(name, summary) for name, summary in group.items() if name in names]:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=12)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The name with its summary, for help and completion: it does not run."""
        known = cmd_name in self.list_commands(ctx)
        return click.Command(cmd_name, short_help=_SUMMARIES.get(cmd_name, "")) if known else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that runs, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(name)), rest


def load_command(name: str) -> click.Command:
    """Import the command of that name."""
    if added := tuple(entry_points(group=_ENTRY_POINTS, name=name)):
        command = added[0].load()
    else:
        command = getattr(import_module(f"service.cli.{name}"), f"{name}_command")
    assert isinstance(command, click.Command)
    lines = [f"  topfive {name} {arguments}".rstrip() for arguments in EXAMPLES.get(name, ())]
    command.epilog = "\n".join(("\b\nExamples:", *lines)) if lines else None  # \b: click keeps the lines as they are
    return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": get_terminal_size().columns},
)
@click.version_option(package_name="topfive")
def main() -> None:
    """A photo goes in, the five best ImageNet classes come out."""
    for name, nearest in misspelt(os.environ):
        click.echo(f"warning: no option reads {name}; {nearest} is the nearest that one reads", err=True)
