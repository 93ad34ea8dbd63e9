"""Makes TLS files and API keys from the settings, and warns if every client may use the server."""

import logging

from service.common.api_keys import ApiKeys
from service.common.clock import Clock
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.tls import ServerTls

_EVERY_ADDRESS = ("", "0.0.0.0", "::")

log = logging.getLogger(__name__)


def server_tls(settings: Settings) -> ServerTls | None:
    """The TLS files of the settings, None without TLS. Raises OSError if they cannot be used."""
    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is not None and key is not None:
        return ServerTls(cert, key, client_ca)
    if (cert, key, client_ca) != (None, None, None):
        raise OSError("--tls-cert and --tls-key are given together, and --tls-client-ca with them")
    return None


def api_keys(settings: Settings, clock: Clock, metrics: Metrics) -> ApiKeys | None:
    """The API keys of the settings, None without a file. Raises OSError if it cannot be used."""
    if settings.api_keys_file is not None:
        return ApiKeys(settings.api_keys_file, clock, metrics)
    if settings.host in _EVERY_ADDRESS and settings.tls_client_ca is None:
        log.warning(
            "anybody who reaches this machine may use the server: it listens on all addresses, without "
            "--api-keys-file or --tls-client-ca; see docs/security.md"
        )
    return None
