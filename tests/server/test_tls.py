"""TLS and mutual TLS of both transports, of the gateway's calls, and of the health probe."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.common import reloaded
from service.gateway.replicas import ReplicaAccess
from service.server.health_probe import main, probe
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.gateway.inference_servers import gateway
from tests.serving import PNG, Running, serving

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate for localhost, its key and its authority, as files."""

    cert: Path
    key: Path
    ca: Path

    @property
    def access(self) -> ReplicaAccess:
        """How a gateway with this certificate calls servers of the same authority."""
        return ReplicaAccess("", self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes())


def issue(folder: Path) -> Identity:
    """Write a new certificate of a new authority into the folder, over older ones."""
    folder.mkdir(exist_ok=True)
    found = Identity(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(found.ca))
    issued.private_key_pem.write_to_path(str(found.key))
    found.cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    return found


@contextlib.asynccontextmanager
async def https(running: Running, server: Identity, client: Identity | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of REST that trusts the server's authority, and shows its own certificate where it has one."""
    context = ssl.create_default_context(cafile=server.ca)
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{running.service.rest.port}", verify=context) as http:
        yield http


async def rpc_status(running: Running, server: Identity, client: Identity | None = None) -> grpc.StatusCode:
    """The status of a call over a connection of its own."""
    key, cert = (client.key.read_bytes(), client.cert.read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(server.ca.read_bytes(), key, cert)
    address, options = f"localhost:{running.service.rpc.port}", [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        status: grpc.StatusCode = await stub.Classify(pb.ClassifyRequest(image=png()), timeout=20).code()
        return status


async def test_tls(exported: Path, tmp_path: Path) -> None:
    """With a certificate both transports speak TLS alone, and the probe asks by https."""
    server, other = issue(tmp_path / "server"), issue(tmp_path / "other")
    async with serving(exported, FakeEngine(), tls_cert=server.cert, tls_key=server.key) as running:
        async with https(running, server) as http:
            assert (await http.post("/predict", content=png(), headers=PNG)).status_code == 200
        async with https(running, other) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("/livez")
        with pytest.raises(httpx.RemoteProtocolError):
            await running.http.get("/livez")
        assert await rpc_status(running, server) is grpc.StatusCode.OK
        assert await rpc_status(running, other) is grpc.StatusCode.UNAVAILABLE
        url = f"https://127.0.0.1:{running.service.rest.port}/readyz"
        assert await asyncio.to_thread(probe, url) is None


async def test_mutual_tls(exported: Path, tmp_path: Path) -> None:
    """With an authority of clients only their certificates connect, those of the gateway and the probe too."""
    server, client = issue(tmp_path / "server"), issue(tmp_path / "client")
    files: dict[str, Any] = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": client.ca}
    async with serving(exported, FakeEngine(), **files) as running:
        async with https(running, server, client) as http:
            assert (await http.get("/livez")).status_code == 200
        for nobody in (None, server):
            async with https(running, server, nobody) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get("/livez")
            assert await rpc_status(running, server, nobody) is grpc.StatusCode.UNAVAILABLE
        assert await rpc_status(running, server, client) is grpc.StatusCode.OK
        url = f"https://127.0.0.1:{running.service.rest.port}/readyz"
        assert await asyncio.to_thread(main, [url, str(client.cert), str(client.key)]) == 0
        assert await asyncio.to_thread(main, [url]) == 1
        assert await asyncio.to_thread(main, [url, "no-file", "no-file"]) == 2
        both = ReplicaAccess("", server.ca.read_bytes(), client.cert.read_bytes(), client.key.read_bytes())
        async with gateway(running.service.rpc.port, access=both, host="localhost") as front:
            assert (await front.http.post("/predict", content=png(), headers=PNG)).status_code == 200


async def test_new_certificate(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections get the certificate and need the authority of the files then; wrong files change nothing."""
    monkeypatch.setattr(reloaded, "_CHECK_EVERY_S", 0.0)
    server = issue(tmp_path / "server")
    files: dict[str, Any] = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": server.ca}
    async with serving(exported, FakeEngine(), **files) as running:
        for _ in range(3):
            server = issue(tmp_path / "server")
            async with https(running, server, server) as http:
                assert (await http.get("/livez")).status_code == 200
            assert await rpc_status(running, server, server) is grpc.StatusCode.OK
        old = Identity(*(path.rename(tmp_path / path.name) for path in (server.cert, server.key, server.ca)))
        server.cert.write_bytes(old.cert.read_bytes())
        server.key.write_text("no key")
        async with https(running, old, old) as http:
            assert (await http.get("/livez")).status_code == 200
        assert await rpc_status(running, old, old) is grpc.StatusCode.OK


def resumes(port: int, server: Identity, client: Identity | None, version: ssl.TLSVersion) -> bool:
    """Whether a second connection takes up the session of the first. Raises OSError if the server refuses them."""
    context = ssl.create_default_context(cafile=server.ca)
    context.maximum_version = version
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    reused: list[bool | None] = []
    session: ssl.SSLSession | None = None
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
        ):
            tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert tls.recv(4096).startswith(b"HTTP/1.1 200")
            reused.append(tls.session_reused)
            session = tls.session
    return bool(reused[1])


async def test_no_session_outlives_its_authority(exported: Path, tmp_path: Path) -> None:
    """With an authority of clients no connection takes up an earlier session, which would not verify the client."""
    server = issue(tmp_path / "server")
    files: dict[str, Any] = {"tls_cert": server.cert, "tls_key": server.key}
    v2, v3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    async with serving(exported, FakeEngine(), **files) as running:
        port = running.service.rest.port
        assert [await asyncio.to_thread(resumes, port, server, None, version) for version in (v2, v3)] == [True, True]
    async with serving(exported, FakeEngine(), **files, tls_client_ca=server.ca) as running:
        port = running.service.rest.port
        assert not await asyncio.to_thread(resumes, port, server, server, v3)
        with pytest.raises(OSError):  # noqa: PT011  # Python's words differ
            await asyncio.to_thread(resumes, port, server, server, v2)


async def test_gateway_serves_tls(running: Running, tmp_path: Path) -> None:
    """A gateway speaks TLS to its clients."""
    server = issue(tmp_path / "server")
    async with gateway(running.service.rpc.port, tls_cert=server.cert, tls_key=server.key) as front:
        url = f"https://127.0.0.1:{front.gateway.rest.port}/readyz"
        assert await asyncio.to_thread(probe, url) is None


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_half_a_configuration(exported: Path, tmp_path: Path, name: str) -> None:
    """A certificate without its key, or an authority alone, is refused at the start: it would be no TLS at all."""
    with pytest.raises(OSError, match="given together"):
        async with serving(exported, FakeEngine(), **{name: tmp_path}):  # type: ignore[arg-type]
            pass


async def test_wrong_files(exported: Path, tmp_path: Path) -> None:
    """A certificate and the key of another are refused at the start, with their names."""
    first, second = issue(tmp_path / "first"), issue(tmp_path / "second")
    with pytest.raises(OSError, match=r"first/cert\.pem, .*second/key\.pem"):
        async with serving(exported, FakeEngine(), tls_cert=first.cert, tls_key=second.key):
            pass
