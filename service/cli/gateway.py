"""The command `topfive gateway`: REST in front of inference servers."""

import sys
from typing import Any

import click

from service.cli.options import option, options, settings_from
from service.gateway.replicas import parse_targets
from service.server.gateway import run_gateway


@click.command("gateway", short_help="Serve REST in front of inference servers.")
@option(
    "--inference",
    required=True,
    metavar="HOST:PORT[,...]",
    help="gRPC addresses of the inference servers; a name may have several",
)
@options("host", "port", "max_image_bytes", "max_upload_bytes", "timeout_s", "pre_stop_s", "drain_s")
@options("root_path", "forwarded_allow_ips", "allowed_hosts", "cors_origin", "log_level", "log_format")
def gateway_command(inference: str, **values: Any) -> None:
    """Serve REST in front of inference servers, which hold the models, until SIGTERM or Ctrl-C."""
    try:
        targets = parse_targets(inference)
    except ValueError as error:
        raise click.UsageError(f"--inference: {error}") from error
    sys.exit(run_gateway(settings_from(values), targets))
