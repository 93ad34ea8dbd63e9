"""API keys: who is let in, with what, and how much; and what their file must hold."""

from pathlib import Path

import pytest

from service.common.api_keys import ApiKeys, Scope
from service.common.errors import Overloaded, PermissionDenied, Unauthenticated
from service.common.metrics import Metrics
from tests.exposition import value
from tests.fakes import ManualClock
from tests.keys import bearer, write_keys


def test_who_is_let_in(tmp_path: Path) -> None:
    """Either header carries a key; a key opens its scopes only; refusals are counted."""
    path = write_keys(tmp_path / "keys", web={}, admin={"scopes": ["management", "inference"]})
    metrics = Metrics()
    keys = ApiKeys(path, ManualClock(), metrics)

    for headers in (bearer("web"), {"authorization": "bearer  web-key "}, {"x-api-key": "web-key"}):
        assert keys.client(headers, Scope.INFERENCE).key.name == "web"
    assert keys.client(bearer("admin"), Scope.MANAGEMENT).key.name == "admin"
    with pytest.raises(PermissionDenied, match="web does not have the scope management"):
        keys.client(bearer("web"), Scope.MANAGEMENT)
    for wrong in ({}, bearer("wrong"), {"authorization": "Basic web-key"}, {"authorization": "Bearer"}):
        with pytest.raises(Unauthenticated) as caught:
            keys.client(wrong, Scope.INFERENCE)
        assert "web-key" not in str(caught.value)
    assert value(metrics, "topfive_requests_total", model="unknown", code="unauthenticated") == 4
    assert value(metrics, "topfive_requests_total", model="unknown", code="permission_denied") == 1


def test_the_file_changes(tmp_path: Path) -> None:
    """A key that was taken out of the file is refused a second later. A client keeps its count of requests."""
    clock = ManualClock()
    path = write_keys(tmp_path / "keys", web={"max_in_flight": 2}, old={})
    keys = ApiKeys(path, clock, Metrics())
    keys.client(bearer("old"), Scope.INFERENCE)
    with keys.client(bearer("web"), Scope.INFERENCE).admitted():
        write_keys(path, web={"max_in_flight": 1})
        clock.jump(1)
        with pytest.raises(Unauthenticated):
            keys.client(bearer("old"), Scope.INFERENCE)
        web = keys.client(bearer("web"), Scope.INFERENCE)
        with pytest.raises(Overloaded, match="its limit"), web.admitted():
            pass
    with web.admitted():
        assert web.in_flight == 1


def test_rate(tmp_path: Path) -> None:
    """A key may send one second's requests at once, then one each time a token is there; the wait is told."""
    clock = ManualClock()
    keys = ApiKeys(write_keys(tmp_path / "keys", web={"requests_per_s": 4.0}), clock, Metrics())

    def sent() -> int:
        """How many requests are taken until one is refused, which is told to wait for the next token."""
        count = 0
        with pytest.raises(Overloaded) as caught:  # noqa: PT012
            for _ in range(20):
                with keys.client(bearer("web"), Scope.INFERENCE).admitted():
                    count += 1
        assert caught.value.retry_after_s == 0.25
        return count

    assert sent() == 4
    clock.jump(0.5)
    assert sent() == 2
    clock.jump(100)
    assert sent() == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "key: Field required"),
        ("key = [", "Invalid"),
        ("key = []", "at least 1"),
        ('[[key]]\nname = "a"\nsha256 = "my-secret"', "sha256: String should match"),
        ('[[key]]\nname = "a b"\nsha256 = "%s"' % ("0" * 64), "name: String should match"),
        ('[[key]]\nname = "a"\nsha256 = "%s"\nscope = "x"' % ("0" * 64), "scope: Extra inputs"),
        ('[[key]]\nname = "a"\nsha256 = "%s"\n' % ("0" * 64) * 2, "two have the same name"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, reason: str) -> None:
    """A file that cannot be used is refused with the reason, which has nothing that may be a key."""
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(OSError, match="cannot be used") as caught:
        ApiKeys(path, ManualClock(), Metrics())

    assert reason in str(caught.value)
    assert "my-secret" not in str(caught.value)
