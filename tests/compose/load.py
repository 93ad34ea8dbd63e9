"""A steady load on `/predict`, on threads, with the end of every request."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

WORKERS = 6
PAUSE_S = 0.02


@dataclass
class Load:
    """Workers that send one request after the other until `stop`.

    `ends` has the status of each request, or the name of its failure, and its time in seconds.
    """

    url: str
    image: bytes
    ends: list[tuple[str, float]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.threads = [threading.Thread(target=self._send, daemon=True) for _ in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def more(self, count: int, limit_s: float = 60.0) -> None:
        """Wait until so many more requests have ended."""
        enough, until = len(self.ends) + count, time.monotonic() + limit_s
        while len(self.ends) < enough:
            assert time.monotonic() < until, f"no {count} answers in {limit_s:g} s; so far {self.counts()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End after the requests in flight."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def counts(self) -> dict[str, int]:
        """How many requests ended how."""
        return dict(Counter(end for end, _ in self.ends))

    def slowest_s(self) -> float:
        """The longest that any request took."""
        return max(seconds for _, seconds in self.ends)

    def _send(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stopping.wait(PAUSE_S):
                began = time.monotonic()
                try:
                    answer = client.post(self.url, files={"image": self.image})
                    end = str(answer.status_code)
                except httpx.HTTPError as error:
                    end = type(error).__name__
                self.ends.append((end, time.monotonic() - began))
