"""The inference servers behind names: found by DNS again and again, watched by gRPC health, chosen by their load."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from service.gateway.backend import Replica, Serving

RESOLVE_EVERY_S = 2.0
"""How soon a server is found that joins a name."""

_SHOWN = 3  # targets in a message

_SETTLE_S = 60.0  # for calls to a replica that the name no longer gives

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """A name, or an address, and the port behind it."""

    host: str
    port: int

    def __str__(self) -> str:
        return join(self.host, self.port)


def join(host: str, port: int) -> str:
    """`host:port`, with brackets around an address of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_targets(text: str) -> tuple[Target, ...]:
    """The targets of `HOST:PORT[,HOST:PORT]`, each once. Raises ValueError that shows a right one."""
    targets = []
    for part in filter(None, map(str.strip, text.split(","))):
        host, colon, port = part.removeprefix("dns:///").rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{part!r} is no address; give HOST:PORT, such as inference:8001")
        targets.append(Target(host.removeprefix("[").removesuffix("]"), int(port)))
    if not targets:
        raise ValueError("name at least one inference server, such as inference:8001")
    return tuple(dict.fromkeys(targets))


Resolve = Callable[[Target], Awaitable[Collection[str]]]
"""The addresses, as `host:port`, that a target has now. Raises OSError or UnicodeError where its name has none."""


async def resolve(target: Target) -> Collection[str]:
    """By the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return {join(str(address[0]), target.port) for *_, address in found}


class Replicas:
    """All servers that the targets give. To be started and closed on the event loop.

    A channel per address rather than one channel with gRPC's own balancer: so a call can be sent again to another
    server than the one that refused it, a server that is about to stop gets none, and the least busy one is taken.
    """

    def __init__(
        self, targets: Sequence[Target], resolve: Resolve = resolve, *, resolve_every_s: float = RESOLVE_EVERY_S
    ) -> None:
        self._targets = targets
        self._resolve = resolve
        self._resolve_every_s = resolve_every_s
        self._replicas: dict[str, Replica] = {}
        self._changed = asyncio.Event()
        self._turn = 0
        self._closed = False
        self._known: dict[Target, Collection[str]] = {}
        self._resolving: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()

    def __str__(self) -> str:
        more = len(self._targets) - _SHOWN
        return ", ".join(map(str, self._targets[:_SHOWN])) + (f" and {more} more" if more > 0 else "")

    @property
    def serving(self) -> list[Replica]:
        """Those that say they are ready."""
        return [one for one in self._replicas.values() if one.state is Serving.YES]

    @property
    def answering(self) -> bool:
        """Whether any says whether it is ready."""
        return any(one.state in (Serving.YES, Serving.NO) for one in self._replicas.values())

    @property
    def closed(self) -> bool:
        """Whether no call may begin any more."""
        return self._closed

    def start(self) -> None:
        """Begin to find and to watch servers."""
        loop = asyncio.get_running_loop()  # a task each: a name that nobody answers must not keep the others waiting
        self._resolving = [loop.create_task(self._keep_resolving(target)) for target in self._targets]

    def pick(self, besides: Collection[Replica] = ()) -> Replica | None:
        """The one with the fewest calls under way, those in turn that have equally few; None where there is none.

        Servers that say they are not ready come after all others: one may be loading a model, while another works.
        """
        for state in (Serving.YES, Serving.NO):
            found = [one for one in self._replicas.values() if one.state is state and one not in besides]
            if found:
                self._turn += 1
                start = self._turn % len(found)
                return min(found[start:] + found[:start], key=lambda one: one.calls)
        return None

    async def change(self, within_s: float) -> None:
        """Until a server comes, goes or changes its state, or until so many seconds have passed."""
        try:
            async with asyncio.timeout(within_s):
                await self._changed.wait()
        except TimeoutError:
            return

    def stop(self) -> None:
        """Let nobody wait for a server any longer."""
        self._closed = True
        self._notify()

    async def aclose(self) -> None:
        """End the watching and every call."""
        self.stop()
        for task in self._resolving:
            task.cancel()
        await asyncio.gather(*self._resolving, return_exceptions=True)
        for task in self._leaving:
            task.cancel()
        closing = [one.aclose(0) for one in self._replicas.values()]
        await asyncio.gather(*self._leaving, *closing, return_exceptions=True)
        self._replicas.clear()

    async def _keep_resolving(self, target: Target) -> None:
        level = logging.WARNING
        while True:
            try:
                self._known[target] = await self._resolve(target)
                level = logging.WARNING
            except (OSError, UnicodeError) as error:  # while all of them restart a name has no address: they may return
                log.log(level, "%s has no address (%s); is the name right? It is asked again and again", target, error)
                level = logging.DEBUG  # said once
            self._update({address for addresses in self._known.values() for address in addresses})
            await asyncio.sleep(self._resolve_every_s)

    def _update(self, addresses: Collection[str]) -> None:
        for address in sorted(set(addresses) - self._replicas.keys()):
            log.info("inference server %s found", address)
            self._replicas[address] = Replica(address, self._notify)
        for address in sorted(self._replicas.keys() - set(addresses)):
            log.info("inference server %s is no longer named", address)
            task = asyncio.get_running_loop().create_task(self._replicas.pop(address).aclose(_SETTLE_S))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _notify(self) -> None:
        self._changed.set()
        if not self._closed:
            self._changed = asyncio.Event()
