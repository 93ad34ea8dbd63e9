"""What proxies in front of the server say: the path prefix, host, scheme and client of a request."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)  # it stands in links of /docs, so it must not name another host


class ProxyHeaders(ProxyHeadersMiddleware):
    """ASGI middleware: adds the path prefix that a proxy strips, and reads X-Forwarded-* headers of trusted proxies.

    The prefix is X-Forwarded-Prefix of a trusted proxy, else `root_path`. A path that has the prefix stays as it is.
    This class reads X-Forwarded-Prefix and -Host; uvicorn's class, its base, reads -Proto and -For.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: str) -> None:
        super().__init__(app, trusted)  # type: ignore[arg-type]  # the types of uvicorn and starlette differ in name
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        prefix = self._root_path
        if (client := scope["client"]) is not None and client[0] in self.trusted_hosts:
            headers = Headers(scope=scope)
            given = headers.get("X-Forwarded-Prefix", "").rstrip("/")
            prefix = given if _PREFIX.fullmatch(given) else prefix
            if host := headers.get("X-Forwarded-Host"):
                others = [(name, value) for name, value in headers.raw if name != b"host"]
                scope["headers"] = [*others, (b"host", host.partition(",")[0].strip().encode("latin-1"))]
        if prefix:
            scope["root_path"] = prefix
            if not scope["path"].startswith(f"{prefix}/"):
                scope["path"] = prefix + scope["path"]
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]
