"""The certificate, key and client authority of a server, from files that are read again when they change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from service.common.reloaded import Reloaded


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM files as gRPC takes them, and the same as a context for REST. With an authority it asks for clients' own."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class ServerTls:
    """What the files hold, read again when they change. Raises OSError if they cannot be used at first.

    `client_ca` is the authority whose clients alone may connect; None admits any.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        paths = [path for path in (cert, key, client_ca) if path is not None]
        self._material = Reloaded(paths, lambda: _read(cert, key, client_ca))

    @property
    def material(self) -> TlsMaterial:
        return self._material.value

    def context(self) -> ssl.SSLContext:
        """A context for a listener: each of its handshakes uses the files of that moment."""
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
        authority = None if client_ca is None else client_ca.read_bytes()
        return TlsMaterial(cert.read_bytes(), key.read_bytes(), authority, context)
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(str(path) for path in (cert, key, client_ca) if path is not None)
        raise OSError(f"the certificate, key or authority cannot be used ({names}): {error}") from error
