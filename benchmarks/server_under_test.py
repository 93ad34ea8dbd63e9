"""Starts a server of any kind, waits until it answers, reads its CPU time and memory, and stops it."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil

from benchmarks.requests import send_photo
from benchmarks.servers import ROOT, ServerSpec

_PORTS = 10  # of each copy
_POLL_S = 0.02
_PROBE_TIMEOUT_S = 5.0
_LOG_TAIL = 600
_CPU_CLOCK = 2  # of a process: clock_getcpuclockid(3)


class ServerError(Exception):
    """A server did not start, or it ended."""


class ServerUnderTest:
    """A context in which a server runs: it answers `photo` when the block begins, and is stopped at its end.

    `addresses` has one URL for each copy, and `start_s` is the time from the start of the command until every copy
    answered well. The server runs in `folder` and writes its log there. Entering raises ServerError where
    the program is missing, where it ends, or where it does not answer within `start_timeout_s`.
    """

    def __init__(
        self,
        spec: ServerSpec,
        folder: Path,
        photo: bytes,
        *,
        start_timeout_s: float = 90.0,
        stop_timeout_s: float = 3.0,
    ) -> None:
        self.ports: list[int] = []
        self.addresses: tuple[str, ...] = ()
        self.start_s = 0.0
        self.spec = spec
        self._folder = folder
        self._photo = photo
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
        """Terminate the copies, and kill every process of them that is left after the timeout."""
        processes = self.processes()
        for copy in self._copies:
            copy.terminate()
        for process in psutil.wait_procs(processes, self._stop_timeout_s)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for copy in self._copies:
            copy.wait()
            with suppress(ProcessLookupError):  # those whose parent ended before them
                os.killpg(copy.pid, signal.SIGKILL)

    def processes(self) -> list[psutil.Process]:
        """The copies that run, and their descendants."""
        found = []
        for copy in self._copies:
            if copy.poll() is None:
                process = psutil.Process(copy.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def cpu_s(self) -> float:
        """CPU seconds so far of the running processes, in the nanoseconds of the kernel's clock of each."""
        total = 0.0
        for process in self.processes():
            with suppress(OSError):
                total += time.clock_gettime(~process.pid << 3 | _CPU_CLOCK)
        return total

    def memory_bytes(self) -> int:
        """The memory of the running processes, in which a page that they share counts once (PSS)."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def _started(self, port: int, output: int) -> subprocess.Popen[bytes]:
        def filled(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{port+1}", str(port + 1))

        program = [filled(argument) for argument in self.spec.program]
        environ = {name: filled(value) for name, value in self.spec.environ.items()}
        try:
            return subprocess.Popen(
                program,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C ends only the benchmark; Linux would schedule a session as a group of its own
            )
        except OSError as error:
            raise ServerError(f"{program[0]} cannot be run: {error.strerror}") from error

    def _wait_until_ready(self, address: str, until: float) -> None:
        while reason := self._refusal(address):
            for copy in self._copies:
                if (status := copy.poll()) is not None:
                    raise ServerError(f"the server ended with status {status} before it was ready")
            if time.monotonic() > until:
                raise ServerError(f"the server was not ready in time ({reason})")
            time.sleep(_POLL_S)

    def _refusal(self, address: str) -> str:
        answer = asyncio.run(send_photo(self.spec, address, self._photo, _PROBE_TIMEOUT_S))
        return f"{answer.failure}: {answer.text}" if answer.failure else ""


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
