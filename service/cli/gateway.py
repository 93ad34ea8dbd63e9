"""The command `topfive gateway`: REST in front of inference servers."""

import sys
from collections.abc import Callable
from typing import Any

import click

from service.cli.options import Command, option, options, settings_from


def _file_option(flag: str, meaning: str) -> Callable[[Command], Command]:
    """An option that names a file and gives its bytes."""
    return option(
        flag, type=click.File("rb"), callback=lambda _context, _option, file: file and file.read(), help=meaning
    )


@click.command("gateway")
@option(
    "--inference",
    required=True,
    metavar="HOST:PORT[,...]",
    help="gRPC addresses of the inference servers; a name may have several",
)
@options("host", "port", "max_image_bytes", "max_upload_bytes", "keep_alive_s", "timeout_s")
@_file_option("--replica-ca", "PEM file of the authority of the inference servers, which speak TLS then")
@_file_option("--replica-cert", "PEM file of the certificate that the gateway shows to the inference servers")
@_file_option("--replica-key", "PEM file of the key of --replica-cert")
@_file_option("--replica-api-key-file", "File of the API key that the gateway sends to the inference servers")
@options("api_keys_file", "public_metrics", "tls_cert", "tls_key", "tls_client_ca")
@options(
    "pre_stop_s", "drain_s", "root_path", "forwarded_allow_ips", "allowed_hosts", "cors_origin", "torchserve_compatible"
)
@options("log_level", "log_format", "access_log")
def gateway_command(
    inference: str,
    replica_ca: bytes | None,
    replica_cert: bytes | None,
    replica_key: bytes | None,
    replica_api_key_file: bytes | None,
    **values: Any,
) -> None:
    """Serve REST in front of inference servers, which hold the models, until SIGTERM or Ctrl-C."""
    from service.gateway.replicas import ReplicaAccess, parse_targets
    from service.server.gateway import run_gateway

    try:
        targets = parse_targets(inference)
    except ValueError as error:
        raise click.UsageError(f"--inference: {error}") from error
    if (replica_cert is None) != (replica_key is None) or (replica_cert and not replica_ca):
        raise click.UsageError("--replica-cert and --replica-key are given together, and with --replica-ca")
    access = ReplicaAccess((replica_api_key_file or b"").decode().strip(), replica_ca, replica_cert, replica_key)
    sys.exit(run_gateway(settings_from(values), targets, access))
