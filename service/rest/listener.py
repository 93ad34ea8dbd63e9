"""Where connections come from: a listener of one's own, or one that several processes share and that each takes as
many from."""

import asyncio
import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

_BACKLOG = 2048

_SO_ATTACH_FILTER = 26  # of Linux; Python's socket module does not name it
# A packet filter in the kernel's instructions: code, jump if true, jump if false, operand.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # then drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep it
)

_DEFER_S = 0.001
_PATIENCE_S = 0.01  # how long a connection waits for the process that has fewer; that one may hang
_NO_DESCRIPTOR_S = 0.1
_MOST_PROCESSES = 128
_ABSENT = 1 << 62

Take = Callable[[socket.socket], asyncio.Task[None]]
"""Serves a connection that was accepted; the task ends once it counts among the open ones."""


class Door(Protocol):
    """What a server accepts connections from."""

    listener: socket.socket

    def sockets(self) -> list[socket.socket]:
        """Those that the server is to accept from by itself."""

    def open(self, take: Take) -> None:
        """Accept what the server does not, and give it to `take`."""

    def count(self, connections: int) -> None:
        """So many are open now."""

    def deafen(self) -> None:
        """Let nobody begin to connect any more; those that have begun go on. Raises OSError where that cannot be."""

    def shut(self) -> None:
        """Accept nothing more. Raises OSError where the system cannot do that before the listener is closed."""


class OwnDoor:
    """A listener of this process alone."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    def sockets(self) -> list[socket.socket]:
        """The listener."""
        return [self.listener]

    def open(self, take: Take) -> None:
        """Nothing: the server accepts."""

    def count(self, connections: int) -> None:
        """Nobody asks."""

    def deafen(self) -> None:
        """As `deafen`."""
        deafen(self.listener)

    def shut(self) -> None:
        """The kernel refuses from now on."""
        self.listener.shutdown(socket.SHUT_RDWR)


class Counts:
    """How many connections each of several processes has, in memory that they share; each writes its own number."""

    def __init__(self, descriptor: int) -> None:
        self._table = memoryview(mmap.mmap(descriptor, 0)).cast("q")

    @staticmethod
    def make() -> int:
        """The descriptor of a new table, with nobody in it."""
        descriptor = os.memfd_create("topfive-connections", os.MFD_CLOEXEC)
        os.write(descriptor, struct.pack("q", _ABSENT) * _MOST_PROCESSES)
        return descriptor

    def note(self, number: int, connections: int) -> None:
        """Process `number` has so many."""
        self._table[number] = connections

    def leave(self, number: int) -> None:
        """Process `number` takes none."""
        self._table[number] = _ABSENT

    @property
    def fewest(self) -> int:
        """The least number that any process has which takes some."""
        return min(self._table)


class SharedDoor:
    """A listener that several processes accept from: who has more connections than another lets that one go first.

    Woken all at once, the first process would take a whole burst, and another be idle for as long as those connections
    live. Whoever made the listener deafens and shuts it.
    """

    def __init__(self, listener: socket.socket, counts: Counts, number: int) -> None:
        self.listener = listener
        self._counts = counts
        self._number = number
        self._watching = False
        self._open = 0
        self._coming = 0
        self._waits_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._take: Take | None = None

    def sockets(self) -> list[socket.socket]:
        """None."""
        return []

    def open(self, take: Take) -> None:
        """Accept, each time it is this process's turn."""
        self.listener.setblocking(False)
        self._take = take
        self._watching = True
        self._tell()
        self._watch()

    def count(self, connections: int) -> None:
        """Tell the others."""
        self._open = connections
        self._tell()

    def deafen(self) -> None:
        """Left to whoever made the listener: the others may go on."""

    def shut(self) -> None:
        """Leave the rest to the others."""
        self._watching = False
        self._unwatch()
        self._counts.leave(self._number)

    def _watch(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self.listener, self._ready)

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self.listener)
        if self._timer is not None:
            self._timer.cancel()

    def _pause(self, seconds: float) -> None:
        self._unwatch()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._watch)

    def _ready(self) -> None:
        """A connection waits, unless another process was quicker."""
        loop = asyncio.get_running_loop()
        if self._open + self._coming > self._counts.fewest:
            self._waits_since = self._waits_since or loop.time()
            if loop.time() - self._waits_since < _PATIENCE_S:
                self._pause(_DEFER_S)
                return
        self._waits_since = None
        try:
            connection = self.listener.accept()[0]
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left
            self._pause(_NO_DESCRIPTOR_S)
            return
        assert self._take is not None, "it was opened"
        self._coming += 1
        self._tell()
        self._take(connection).add_done_callback(self._came)

    def _came(self, _begun: asyncio.Task[None]) -> None:
        self._coming -= 1
        self._tell()

    def _tell(self) -> None:
        if self._watching:
            self._counts.note(self._number, self._open + self._coming)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises OSError that says which option to change."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            f"REST cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error


def deafen(listener: socket.socket) -> None:
    """Let the kernel drop what would begin one more connection; those that have begun go on.

    One that came between the last `accept` and the close would be reset, and its client could not tell whether it was
    served; so it asks again a second later and is refused. Raises OSError where the system cannot.
    """
    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_SYN)
    program = ctypes.create_string_buffer(instructions, len(instructions))
    address = ctypes.addressof(program)
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), address))
