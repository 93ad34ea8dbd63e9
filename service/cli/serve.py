"""The command `topfive serve`. It imports nothing that only other commands need."""

import sys
from typing import Any

import click

from service.cli.options import options, settings_from
from service.common.settings import Settings


@click.command("serve")
@options(*Settings.model_fields)
def serve_command(**values: Any) -> None:
    """Serve exported models over REST and gRPC until SIGTERM or Ctrl-C."""
    from service.server.app import run

    sys.exit(run(settings_from(values)))
