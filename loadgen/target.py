"""The servers that are measured: the requests for each, lines to them, and whether they answer at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadgen.connection import Done, Line, LoadError, Outcome, Payloads
from loadgen.http_client import Answer, ask
from loadgen.http_connection import Address, HttpLine
from loadgen.images import Photo
from loadgen.requests import Api, Form, image_request

CHECK_S = 60.0
"""How long a first request may take: it may wait for a model to load."""

MakeRequest = Callable[[Address, Photo], bytes]
"""Makes the whole HTTP request that sends an image to a server."""


class Target(Protocol):
    """Servers of the same kind. `payloads` are the requests of each server, one for each image."""

    @property
    def payloads(self) -> Sequence[Payloads]:
        """By server, then by image."""

    def line(self, number: int, done: Done) -> Line:
        """A new line, not yet connected, to server `number` modulo how many there are."""

    async def check(self) -> list[str]:
        """Ask each server once; what it said. Raises LoadError where one does not answer, or answers an error."""

    async def aclose(self) -> None:
        """Close what the lines share."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Servers that speak HTTP."""

    addresses: tuple[Address, ...]
    payloads: tuple[Payloads, ...]
    api: Api

    @classmethod
    def of(cls, urls: Sequence[str], form: Form, photos: Sequence[Photo]) -> "HttpTarget":
        """All requests of that form, ready to be sent. Raises LoadError of what is no address."""
        return cls.asked(urls, lambda address, photo: image_request(form, address, photo), photos, form.api)

    @classmethod
    def asked(
        cls, urls: Sequence[str], make_request: MakeRequest, photos: Sequence[Photo], api: Api = Api.RAW
    ) -> "HttpTarget":
        """Servers of any protocol over HTTP whose requests the caller makes. Raises LoadError of what is no address."""
        addresses = tuple(Address.parse(url) for url in urls)
        payloads = tuple([make_request(address, photo) for photo in photos] for address in addresses)
        return cls(addresses, payloads, api)

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

    async def aclose(self) -> None:
        """Nothing is shared."""


def _judged(api: Api, address: Address, answer: Answer) -> str:
    """What a good answer says, in a line. Raises LoadError of any other, and of one that another API gave."""
    if location := answer.headers.get("location", ""):
        raise LoadError(f"{address.authority} redirects ({answer.status}) to {location}; give that address")
    if not 200 <= answer.status < 300:
        said = Outcome("", answer.body).said
        raise LoadError(f"{address.authority} answers {answer.status}: {said or 'nothing'}; --allow-errors measures it")
    best = _best(answer.body)
    if not best and api is Api.TOPFIVE:
        said = Outcome("", answer.body).said
        raise LoadError(
            f"{address.authority} answers {answer.status}, but not as --api {api} would: {said or 'nothing'}; "
            "of another server say its --api"
        )
    return f"{address.authority}: {answer.status}, {len(answer.body):,} bytes{best}"


def _best(body: bytes) -> str:
    """The best class in a reply of this project's API, nothing of others'."""
    try:
        reply = json.loads(body)
        best, engine = reply["predictions"][0], reply["engine"]
        return (
            f", {best['label']} {best['probability']:.3f}, {reply['model']['name']} on "
            f"{engine['runtime']} {engine['precision']}"
        )
    except (ValueError, LookupError, TypeError):
        return ""
