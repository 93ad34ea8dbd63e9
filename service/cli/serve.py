"""The command `topfive serve`. It imports nothing that only other commands need."""

import sys
from typing import Any

import click

from service.cli.options import options, settings_from
from service.common.settings import Settings
from service.server.app import run


@click.command("serve", short_help="Serve exported models over REST and gRPC.")
@options(*Settings.model_fields)
def serve_command(**values: Any) -> None:
    """Serve exported models over REST and gRPC until SIGTERM or Ctrl-C."""
    sys.exit(run(settings_from(values)))
