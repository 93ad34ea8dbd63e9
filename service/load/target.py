"""The servers that are measured: their addresses, the requests for each, and whether they answer at all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from service.load.ask import Answer, ask
from service.load.http import Address, HttpLine
from service.load.images import Photo
from service.load.line import Done, Line, LoadError, Outcome, Payloads
from service.load.requests import Form, image_request

_CHECK_S = 60.0  # a first request may wait for a model to load


@dataclass(frozen=True, slots=True)
class Target:
    """Servers of the same kind; line i goes to address i modulo their number. `payloads` are by address."""

    addresses: tuple[Address, ...]
    payloads: tuple[Payloads, ...]

    def line(self, number: int, done: Done) -> Line:
        """A new line, not yet connected."""
        place = number % len(self.addresses)
        return HttpLine(self.addresses[place], self.payloads[place], done)

    async def check(self) -> list[str]:
        """Ask each server once; what it said. Raises LoadError where one does not answer, or answers an error."""
        return [
            _judged(address, await ask(address, payloads[0], _CHECK_S))
            for address, payloads in zip(self.addresses, self.payloads, strict=True)
        ]


def target_of(urls: Sequence[str], form: Form, photos: Sequence[Photo]) -> Target:
    """Everything that can be made before the servers are asked anything. Raises LoadError."""
    addresses = tuple(Address.parse(url) for url in urls)
    payloads = tuple([image_request(form, address, photo) for photo in photos] for address in addresses)
    return Target(addresses, payloads)


def _judged(address: Address, answer: Answer) -> str:
    """What a good answer says, in a line. Raises LoadError of any other."""
    if location := answer.headers.get("location", ""):
        raise LoadError(f"{address.authority} redirects ({answer.status}) to {location}; give that address")
    if not 200 <= answer.status < 300:
        said = Outcome("", answer.body).said
        raise LoadError(f"{address.authority} answers {answer.status}: {said or 'nothing'}; --allow-errors measures it")
    return f"{address.authority}: {answer.status}, {len(answer.body):,} bytes{_best(answer.body)}"


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
