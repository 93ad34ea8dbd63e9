"""A server that is measured: started on free ports, asked until it answers, and ended with all its processes."""

import http.client
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asking import ask
from benchmarks.subjects import ROOT, Subject
from benchmarks.tree import MARK, Tree

_PORTS = 10
_POLL_S = 0.05
_SETTLE_S = 8.0
_LOOK_S = 0.4
_IDLE = 0.3  # cores: some servers poll
_TAIL_BYTES = 600


class ServerError(Exception):
    """A server did not start, or ended."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has answered: its addresses, its processes, and seconds from its start to that answer."""

    subject: Subject
    addresses: tuple[str, ...]
    tree: Tree
    start_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers run: the model's file for those of others, and a folder for what they write."""

    model: Path
    folder: Path
    start_timeout_s: float = 90.0
    end_timeout_s: float = 3.0


def free_ports(copies: int) -> list[int]:
    """The first port for each copy, with nine more after it that nobody has; below those the kernel gives to clients.

    Raises ServerError where there are none.
    """
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


@contextmanager
def running(subject: Subject, place: Place, photo: bytes) -> Iterator[Running]:
    """The server while the context lasts, with as many processes as the subject says; none is left afterwards.

    Raises ServerError where a program is missing, ends, or gives no answer with status 200 in time.
    """
    mark = uuid.uuid4().hex
    began = time.monotonic()
    processes: list[subprocess.Popen[bytes]] = []
    ports = free_ports(subject.copies)
    log = place.folder / f"{subject.name.replace(' ', '-').replace('/', '-')}.log"
    try:
        with log.open("wb") as output:
            for port in ports:
                processes.append(_started(subject, place, port, mark, output.fileno()))
        addresses = tuple(f"http://127.0.0.1:{port}" for port in ports)
        for address in addresses:
            _wait(subject, address, photo, processes, began + place.start_timeout_s)
        start_s = time.monotonic() - began
        tree = Tree(mark, tuple(process.pid for process in processes))
        _settle(tree)
        yield Running(subject, addresses, tree, start_s)
    except ServerError as error:
        tail = " ".join(log.read_text(encoding="utf-8", errors="replace")[-_TAIL_BYTES:].split())
        raise ServerError(f"{error}; its last words: {tail or 'none'}") from error
    finally:
        Tree(mark, tuple(process.pid for process in processes)).end(place.end_timeout_s)
        for process in processes:
            process.wait()


def _settle(tree: Tree) -> None:
    """Wait, for a bounded time, until it computes little: other workers may still be starting when one answers."""
    end = time.monotonic() + _SETTLE_S
    before = tree.cpu_s()
    while time.monotonic() < end:
        time.sleep(_LOOK_S)
        now = tree.cpu_s()
        if now - before < _IDLE * _LOOK_S:
            return
        before = now


def _started(subject: Subject, place: Place, port: int, mark: str, output: int) -> subprocess.Popen[bytes]:
    program = [part.replace("{port}", str(port)).replace("{port+1}", str(port + 1)) for part in subject.program]
    environ = {
        **os.environ,
        **subject.environ,
        MARK: mark,
        "BENCH_MODEL": str(place.model),
        "BENCH_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    try:
        return subprocess.Popen(
            program,
            cwd=place.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError as error:
        raise ServerError(f"{program[0]} cannot be run: {error.strerror}") from error


def _wait(subject: Subject, address: str, photo: bytes, processes: list[subprocess.Popen[bytes]], until: float) -> None:
    said = "no answer"
    while (left := until - time.monotonic()) > 0:
        for process in processes:
            if (status := process.poll()) is not None:
                raise ServerError(f"it ended with status {status} before it answered")
        try:
            status, body = ask(address, subject, photo, min(left, 5.0))
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
        else:
            if status == http.HTTPStatus.OK:
                return
            said = f"{status} {body[:200]!r}"
        time.sleep(_POLL_S)
    raise ServerError(f"no answer with status 200 in time ({said})")
