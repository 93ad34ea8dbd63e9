"""One image of a long run and what came of it, as a row of the journal."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.common.types import Prediction


class BulkError(Exception):
    """What keeps a run from starting or going on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image to run: the name that its row goes by, the file, and the class it shows where that is known."""

    name: str
    file: Path
    truth: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer: an error code, or `unreadable` where the file itself could not be read."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one image, best class first, or why there is none."""

    path: str
    error: Failure | None
    predictions: tuple[Prediction, ...] = ()
    truth: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; `truth` only where it is known."""
        content = asdict(self)
        if self.truth is None:
            del content["truth"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Row":
        """Raises KeyError or TypeError where it is not a row."""
        error = content["error"]
        return cls(
            path=content["path"],
            error=None if error is None else Failure(**error),
            predictions=tuple(Prediction(**one) for one in content["predictions"]),
            truth=content.get("truth"),
        )
