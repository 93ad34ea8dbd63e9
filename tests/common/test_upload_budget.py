"""The memory of request bodies: what all take together, and what one address may take."""

from contextlib import ExitStack

import pytest

from service.common.errors import Overloaded
from service.common.upload_budget import UploadBudget


def test_one_address() -> None:
    """Two requests of an address take half at most of what others leave; others get the rest, and all is given back."""
    budget = UploadBudget(1000)
    for _ in range(2):
        with ExitStack() as open_requests:
            first, second, other, unknown = (
                open_requests.enter_context(budget.share(address)) for address in ("a", "a", "b", None)
            )
            first(400)
            second(100)
            with pytest.raises(Overloaded):
                second(1)
            other(300)
            unknown(200)
            with pytest.raises(Overloaded):
                other(1)


def test_only_request() -> None:
    """The only request of an address may take all that is left."""
    budget = UploadBudget(1000)
    with budget.share("a") as take:
        for _ in range(1000):
            take(1)
        with pytest.raises(Overloaded):
            take(1)
