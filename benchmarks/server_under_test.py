"""Starts a server of any kind, waits until it is ready, reads its CPU time and memory, and stops it."""

import asyncio
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.requests import photo_request
from benchmarks.servers import ROOT, ServerSpec
from loadgen.connection import LoadTestError
from loadgen.http_connection import ServerAddress, fetch

_PORTS = 10  # of each copy
_POLL_S = 0.02
_PROBE_TIMEOUT_S = 5.0
_SETTLE_S = 8.0
_SETTLE_POLL_S = 0.4
_IDLE_CPUS = 0.3  # some servers poll while nothing is asked of them
_LOG_TAIL = 600

Probe = Callable[[str], str]
"""Asks the server at a URL whether it is ready. Returns the reason why it is not, or an empty string."""


class ServerError(Exception):
    """A server did not start, or it ended."""


class ProcessTree:
    """The processes that were started with `environ`, and their descendants.

    A variable in the environment also finds a process whose parent has ended. Parenthood also finds a process that
    overwrote its environment, as setproctitle does.
    """

    def __init__(self) -> None:
        self._mark = f"TOPFIVE_BENCHMARK_{uuid.uuid4().hex}"  # a name of its own: a tree may start another one
        self.environ = {**os.environ, self._mark: "1"}

    def processes(self) -> list[psutil.Process]:
        running = {process.pid: process for process in psutil.process_iter(["environ", "ppid", "status"])}
        chosen = {pid for pid, one in running.items() if self._mark in (one.info["environ"] or {})}
        while children := {pid for pid, one in running.items() if one.info["ppid"] in chosen} - chosen:
            chosen |= children
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return [running[pid] for pid in chosen if running[pid].info["status"] not in ended]

    def cpu_s(self) -> float:
        """CPU seconds so far of the running processes and of those of their children that have ended."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                total += used.user + used.system + used.children_user + used.children_system
        return total

    def memory_bytes(self) -> int:
        """The memory of the running processes, in which a page that they share counts once (PSS)."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def stop(self, roots: Sequence[subprocess.Popen[Any]], timeout_s: float) -> None:
        """Terminate `roots`, and kill every process that is left after the timeout."""
        for root in roots:
            root.terminate()
        psutil.wait_procs(self.processes(), timeout_s)
        while left := self.processes():
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, 1.0)
        for root in roots:
            root.wait()


class ServerUnderTest:
    """A context in which a server runs: it is ready when the block begins, and no process of it outlives the block.

    `addresses` has one URL for each copy, and `start_s` is the time from the start of the command until the probe
    found every copy ready. The server runs in `folder` and writes its log there. Entering raises ServerError where the
    program is missing, where it ends, or where it is not ready within `start_timeout_s`.
    """

    def __init__(
        self,
        spec: ServerSpec,
        folder: Path,
        probe: Probe,
        *,
        start_timeout_s: float = 90.0,
        stop_timeout_s: float = 3.0,
    ) -> None:
        self.tree = ProcessTree()
        self.ports: list[int] = []
        self.addresses: tuple[str, ...] = ()
        self.start_s = 0.0
        self.spec = spec
        self._folder = folder
        self._probe = probe
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._copies: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        log = self._folder / f"{self.spec.name.replace(' ', '-').replace('/', '-')}.log"
        began = time.monotonic()
        self.ports = _free_ports(self.spec.copies)
        self.addresses = tuple(f"http://127.0.0.1:{port}" for port in self.ports)
        try:
            with log.open("wb") as output:
                self._copies += [self._started(port, output.fileno()) for port in self.ports]
            for address in self.addresses:
                self._wait_until_ready(address, began + self._start_timeout_s)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, ServerError):
                tail = " ".join(log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].split())
                raise ServerError(f"{error}; its log ends with: {tail or 'nothing'}") from error
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.tree.stop(self._copies, self._stop_timeout_s)

    @property
    def pid(self) -> int:
        """The process of the first copy."""
        return self._copies[0].pid

    def settle(self) -> None:
        """Wait up to 8 s until it uses little CPU: further workers may still start when the first one is ready."""
        end, before = time.monotonic() + _SETTLE_S, self.tree.cpu_s()
        while time.monotonic() < end:
            time.sleep(_SETTLE_POLL_S)
            now = self.tree.cpu_s()
            if now - before < _IDLE_CPUS * _SETTLE_POLL_S:
                return
            before = now

    def _started(self, port: int, output: int) -> subprocess.Popen[bytes]:
        def filled(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{port+1}", str(port + 1))

        program = [filled(argument) for argument in self.spec.program]
        environ = {name: filled(value) for name, value in self.spec.environ.items()}
        try:
            return subprocess.Popen(
                program,
                cwd=self._folder,
                env={**self.tree.environ, "PYTHONPATH": str(ROOT), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C ends only the benchmark; Linux would schedule a session as a group of its own
            )
        except OSError as error:
            raise ServerError(f"{program[0]} cannot be run: {error.strerror}") from error

    def _wait_until_ready(self, address: str, until: float) -> None:
        while reason := self._probe(address):
            for copy in self._copies:
                if (status := copy.poll()) is not None:
                    raise ServerError(f"the server ended with status {status} before it was ready")
            if time.monotonic() > until:
                raise ServerError(f"the server was not ready in time ({reason})")
            time.sleep(_POLL_S)


def ready_endpoint(url: str) -> str:
    """Probes `GET /readyz`."""
    address = ServerAddress.parse(url)
    return _probe(address, f"GET /readyz HTTP/1.1\r\nHost: {address.authority}\r\n\r\n".encode())


def photo_probe(spec: ServerSpec, photo: bytes) -> Probe:
    """A probe that finds a server ready as soon as it answers the photo with status 200."""

    def probe(url: str) -> str:
        address = ServerAddress.parse(url)
        return _probe(address, photo_request(spec, address, photo))

    return probe


def _probe(address: ServerAddress, request: bytes) -> str:
    try:
        answer = asyncio.run(fetch(address, request, _PROBE_TIMEOUT_S))
    except LoadTestError as error:
        return str(error)
    return "" if answer.status == 200 else f"status {answer.status}: {answer.body[:200]!r}"


def _free_ports(copies: int) -> list[int]:
    """The first port of each copy; it and the nine after it are free, and the kernel gives none of them to clients."""
    count = copies * _PORTS
    for first in range(21000 + os.getpid() % 400 * _PORTS, 32000, _PORTS):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + count, _PORTS))
    raise ServerError(f"no {count} free ports in a row below 32000")
