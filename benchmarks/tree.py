"""A server's processes, however it starts them: which they are, what CPU and memory they take, and how they end."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "TOPFIVE_BENCH_MARK"
"""The variable by which processes that left their parent and their session are found again."""

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Process:
    """A line of /proc/PID/stat; CPU seconds of it and of its children that have ended."""

    pid: int
    state: str
    parent: int
    session: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all processes of a server: resident, shared pages counted in each; and proportional, counted once."""

    resident: int
    proportional: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The processes below `roots`, in their sessions, or with `mark` in their environment."""

    mark: str
    roots: tuple[int, ...]

    def members(self) -> list[int]:
        """Those that run now."""
        return [process.pid for process in self._members()]

    def cpu_s(self) -> float:
        """CPU seconds so far, of those that run and of their children that have ended."""
        return sum(process.cpu_s for process in self._members())

    def memory(self) -> Memory:
        """What they hold now."""
        resident = proportional = 0
        for pid in self.members():
            try:
                resident += int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
                lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
                proportional += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
            except (OSError, StopIteration):  # it has just ended
                continue
        return Memory(resident, proportional)

    def end(self, patience_s: float) -> float | None:
        """SIGTERM to the roots, and what is left after `patience_s` is killed: seconds, None where it was killed."""
        began = time.monotonic()
        for pid in self.roots:
            _send(pid, signal.SIGTERM)
        if self._gone(patience_s):
            return time.monotonic() - began
        while members := self.members():
            for pid in members:
                _send(pid, signal.SIGKILL)
            self._gone(1.0)
        return None

    def _gone(self, within_s: float) -> bool:
        end = time.monotonic() + within_s
        while self.members():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True

    def _members(self) -> list[_Process]:
        running = {process.pid: process for process in _processes()}
        wanted = f"{MARK}={self.mark}".encode()
        chosen = {
            pid for pid, one in running.items() if pid in self.roots or one.session in self.roots or _has(pid, wanted)
        }
        grown = True
        while grown:
            children = {pid for pid, one in running.items() if one.parent in chosen} - chosen
            chosen |= children
            grown = bool(children)
        return [running[pid] for pid in chosen if running[pid].state not in "ZX"]


def _processes() -> Iterator[_Process]:
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()  # a name may hold spaces and brackets
        cpu_s = sum(int(field) for field in fields[11:15]) / _TICKS
        yield _Process(int(folder.name), fields[0], int(fields[1]), int(fields[3]), cpu_s)


def _has(pid: int, variable: bytes) -> bool:
    try:
        return variable in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
