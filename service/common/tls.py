"""The certificate, key and client authority of a server, from files that are read again when they change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from service.common.reloaded import Reloaded


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM files for gRPC, and an SSL context of them for REST. With `client_ca`, clients need certificates (mTLS)."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class ServerTls:
    """The contents of the files, read again when they change. Raises OSError if the first read fails.

    Only clients with a certificate from `client_ca` may connect; None admits any client.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        paths = [path for path in (cert, key, client_ca) if path is not None]
        self._material = Reloaded(paths, lambda: _read(cert, key, client_ca))

    @property
    def material(self) -> TlsMaterial:
        return self._material.value

    def context(self) -> ssl.SSLContext:
        """A context for a listener: each handshake uses the present files."""
        context = self.material.context

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.material.context

        context.sni_callback = renew
        return context


def _read(cert: Path, key: Path, client_ca: Path | None) -> TlsMaterial:
    """Read the files. Raises OSError that names them if they do not fit together."""
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # No session is resumed, because its client would not be verified by the authority of that moment.
            context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
        authority = None if client_ca is None else client_ca.read_bytes()
        return TlsMaterial(cert.read_bytes(), key.read_bytes(), authority, context)
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(str(path) for path in (cert, key, client_ca) if path is not None)
        raise OSError(f"the certificate, key or authority cannot be used ({names}): {error}") from error
