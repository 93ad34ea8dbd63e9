"""The servers that are measured: the requests for each, lines to them, and whether they answer at all."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadgen.connection import Done, Line, LoadError, Outcome, Payloads
from loadgen.http_client import Answer, ask
from loadgen.http_connection import Address, HttpLine
from loadgen.images import Photo
from loadgen.open_inference import Model, Spent, ask_model
from loadgen.requests import Api, Form, image_request
from loadgen.tensors import tensor_of

CHECK_S = 60.0
"""How long a first request may take: it may wait for a model to load."""


class Target(Protocol):
    """Servers of the same kind. `payloads` are the requests of each server, one for each image."""

    @property
    def payloads(self) -> Sequence[Payloads]:
        """By server, then by image."""

    def line(self, number: int, done: Done) -> Line:
        """A new line, not yet connected, to server `number` modulo how many there are."""

    async def check(self) -> list[str]:
        """Ask each server once; what it said. Raises LoadError where one does not answer, or answers an error."""

    async def spent(self) -> Spent | None:
        """What the servers spent on the model so far, None where they do not say."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Servers that speak HTTP; `models` is what they told of the model, by server, empty where they were not asked."""

    addresses: tuple[Address, ...]
    payloads: tuple[Payloads, ...]
    api: Api
    models: tuple[Model, ...] = ()

    def line(self, number: int, done: Done) -> Line:
        """A new line, not yet connected."""
        place = number % len(self.addresses)
        return HttpLine(self.addresses[place], self.payloads[place], done)

    async def check(self) -> list[str]:
        """Ask each server once; what it said. Raises LoadError."""
        return [
            _judged(self.api, address, await ask(address, payloads[0], CHECK_S))
            for address, payloads in zip(self.addresses, self.payloads, strict=True)
        ]

    async def spent(self) -> Spent | None:
        """What the servers spent on the model so far, together."""
        found = await asyncio.gather(*(model.spent(CHECK_S) for model in self.models))
        told = [one for one in found if one is not None]
        return sum(told[1:], told[0]) if told and len(told) == len(found) else None


async def http_target(urls: Sequence[str], form: Form, photos: Sequence[Photo]) -> HttpTarget:
    """All requests, ready to be sent; a server of /v2 is asked for its model first. Raises LoadError."""
    addresses = tuple(Address.parse(url) for url in urls)
    if form.api is not Api.V2:
        payloads = tuple([image_request(form, address, photo) for photo in photos] for address in addresses)
        return HttpTarget(addresses, payloads, form.api)
    models = [await ask_model(address, form.model, form.encoding, form.datatype, CHECK_S) for address in addresses]
    return HttpTarget(
        addresses,
        tuple([model.request(tensor_of(photo, model.input), form.path) for photo in photos] for model in models),
        form.api,
        tuple(models),
    )


def _judged(api: Api, address: Address, answer: Answer) -> str:
    """What a good answer says, in a line. Raises LoadError of any other, and of one that another API gave."""
    if location := answer.headers.get("location", ""):
        raise LoadError(f"{address.authority} redirects ({answer.status}) to {location}; give that address")
    if not 200 <= answer.status < 300:
        said = Outcome("", answer.body).said
        raise LoadError(f"{address.authority} answers {answer.status}: {said or 'nothing'}; --allow-errors measures it")
    best = _best(answer)
    if not best and api in (Api.TOPFIVE, Api.V2):
        said = Outcome("", answer.body).said
        raise LoadError(
            f"{address.authority} answers {answer.status}, but not as --api {api} would: {said or 'nothing'}; "
            "of another server say its --api"
        )
    return f"{address.authority}: {answer.status}, {len(answer.body):,} bytes{best}"


def _best(answer: Answer) -> str:
    """The best class in a reply of this project's API, the outputs in one of /v2, nothing of others'."""
    size = answer.headers.get("inference-header-content-length", "")
    try:
        reply = json.loads(answer.body[: int(size)] if size else answer.body)
        if "outputs" in reply:
            shown = [f"{one['name']} {one['datatype']} {one['shape']}" for one in reply["outputs"]]
            return f", {reply['model_name']}: {', '.join(shown)}"
        best, engine = reply["predictions"][0], reply["engine"]
        return (
            f", {best['label']} {best['probability']:.3f}, {reply['model']['name']} on "
            f"{engine['runtime']} {engine['precision']}"
        )
    except (ValueError, LookupError, TypeError):
        return ""
