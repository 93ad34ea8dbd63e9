"""Makes from the settings what a server needs to know its clients, and warns where anybody may come in."""

import logging

from service.common.api_keys import ApiKeys
from service.common.clock import Clock
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.tls import ServerTls

_EVERY_ADDRESS = ("", "0.0.0.0", "::")

log = logging.getLogger(__name__)


def server_tls(settings: Settings) -> ServerTls | None:
    """The certificates of the settings. Raises OSError where they cannot be used."""
    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is not None and key is not None:
        return ServerTls(cert, key, client_ca)
    if (cert, key, client_ca) != (None, None, None):
        raise OSError("--tls-cert and --tls-key are given together, and --tls-client-ca with them")
    return None


def api_keys(settings: Settings, clock: Clock, metrics: Metrics) -> ApiKeys | None:
    """The API keys of the settings. Raises OSError where their file cannot be used."""
    if settings.api_keys_file is not None:
        return ApiKeys(settings.api_keys_file, clock, metrics)
    if settings.host in _EVERY_ADDRESS and settings.tls_client_ca is None:
        log.warning(
            "anybody who reaches this machine may use the server: it listens on all addresses, without "
            "--api-keys-file or --tls-client-ca; see docs/security.md"
        )
    return None
