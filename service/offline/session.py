"""What the commands for many images share: one loaded model at a time, and a stop that loses nothing."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from models.artifact.artifact import WeightRecord
from service.cli.options import option, options
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.settings import Settings
from service.common.types import DEFAULT_CROPS, TEN_CROPS, ModelCard
from service.inference.ensemble import ServedModel, member_names
from service.offline.journal import Journal
from service.offline.rows import BulkError, Item, Row
from service.offline.runner import Bulk, Question, complete, window
from service.repository.loaded_model import LoadedModel
from service.server.app import Core

OpenCore = Callable[[Settings], Core]

crops_option = option(
    "--crops",
    type=click.Choice((str(DEFAULT_CROPS), str(TEN_CROPS))),
    default=str(DEFAULT_CROPS),
    callback=lambda _context, _option, value: int(value),
    help="10 averages over corners, centre and their mirrors",
)

_MODELS = ("artifacts", "cache", "runtime", "precision", "cpus")
_IMAGES = ("decode", "max_image_bytes", "max_image_pixels")

core_options = options(*_MODELS, "max_batch", *_IMAGES)
"""Those of a server that a command needs which runs many images through models in its own process."""

answer_options = options(*_MODELS, *_IMAGES, "timeout_s")
"""The same of a command that answers for a few, each in time."""


class StoppedError(Exception):
    """The user asked to stop before everything was done; the message says how to go on."""


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model, or the members of an ensemble, and the core around it."""

    core: Core
    panel: ServedModel

    @property
    def settings(self) -> dict[str, object]:
        """What decides the answers: a journal goes on only where all of it is the same."""
        limits = self.core.settings.limits
        members = [{"model": member.name, **_facts(member)} for member in self.panel.members]
        return {
            **(members[0] if len(members) == 1 else {"model": self.panel.name, "members": members}),
            "decode": self.core.settings.decode,
            "max_image_bytes": limits.max_bytes,
            "max_image_pixels": limits.max_pixels,
        }

    @property
    def answerer(self) -> dict[str, object]:
        """What a row says of what answered it: the model with its version, weights, runtime, precision; or members."""
        members = [{"name": member.name, **_facts(member)} for member in self.panel.members]
        return members[0] if len(members) == 1 else {"name": self.panel.name, "members": members}

    @property
    def title(self) -> str:
        """The model and what runs it, for a person."""
        engine = self.panel.engine_info
        members = [f"{card.name} v{card.version} ({card.weights})" for card in self.cards]
        return f"{' + '.join(members)}, {engine.runtime} {engine.version}, {engine.device}, {engine.precision}"

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The model's card, or those of the members."""
        return tuple(member.card for member in self.panel.members)

    async def complete(
        self,
        journal: Journal,
        items: list[Item],
        *,
        question: Question,
        stop: asyncio.Event,
        watch: Callable[[Row], None],
    ) -> bool:
        """Run what the journal lacks; whether it then has everything."""
        core, settings, members = self.core, self.core.settings, self.panel.members
        bulk = Bulk(core.data_plane, self.panel, limits=settings.limits, question=question, clock=core.clock)
        size = window(
            max(member.slots for member in members),
            max(member.batcher.max_batch for member in members),
            settings.cpus or cpu_quota(),
            settings.capacity,
            question.crops,
        )
        try:
            return await complete(journal, items, bulk.row, size=size, stop=stop, watch=watch)
        finally:
            bulk.close()


def _facts(member: LoadedModel) -> dict[str, object]:
    """What decides its answers."""
    return {
        "version": member.artifact.version,
        "weights": _weights(member.artifact.manifest.weights),
        "runtime": member.engine_info.runtime,
        "precision": member.engine_info.precision,
    }


def _weights(weights: WeightRecord) -> str:
    """The weights by source, name and sha256 or seed."""
    parts = (weights.source, weights.name, weights.sha256, None if weights.seed is None else f"seed {weights.seed}")
    return " ".join(part for part in parts if part)


@asynccontextmanager
async def opened(settings: Settings, name: str, open_core: OpenCore, stop: asyncio.Event) -> AsyncIterator[Session]:
    """The model or ensemble of that name, loaded; closed at the end.

    Raises TopfiveError, or StoppedError while it loads.
    """
    members = member_names(name)
    core = open_core(settings.model_copy(update={"models": members}))
    try:
        await _unless(stop, core.repository.start(members))
        yield Session(core, await core.data_plane.served(name))
    finally:
        await core.aclose(0)


def run(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], errors: Console) -> int:
    """The exit status of `work`: 0, 1 after an error, which is printed, or 128 and the signal that stopped it.

    The first Ctrl-C or SIGTERM sets the event, for `work` to finish what is under way and raise StoppedError; the
    second one cancels it.
    """
    received: list[int] = []

    async def guarded() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        task = loop.create_task(work(stop))

        def on_signal(number: int) -> None:
            received.append(number)
            if stop.is_set():
                task.cancel()
            else:
                say(errors, "stopping: what is under way is finished; again to stop at once")
                stop.set()

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    try:
        asyncio.run(guarded())
    except StoppedError as error:
        say(errors, str(error))
    except asyncio.CancelledError:
        say(errors, "stopped at once; what was finished is kept")
    except (TopfiveError, BulkError) as error:
        detail = error.detail if isinstance(error, TopfiveError) else str(error)
        say(errors, f"error: {detail}", "red")
        return 1
    else:
        return 0
    return 128 + received[0]


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is, whatever brackets are in it."""
    console.print(Text(text, style=style), soft_wrap=True)


async def _unless(stop: asyncio.Event, work: Awaitable[None]) -> None:
    """Wait for `work`, or leave it and raise StoppedError as soon as `stop` is set."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise StoppedError("stopped before the model was loaded; nothing was run")
        await working
    finally:
        stopped.cancel()
        working.cancel()
