"""What became of a choice: the engine, and why it is this one and no other."""

from collections.abc import Callable
from dataclasses import dataclass, field

from models.artifact.artifact import Artifact, ParityReport
from service.common.types import Layout
from service.engines.base import Engine
from service.engines.selection.compatibility import Fit


@dataclass(frozen=True, slots=True)
class Choice:
    """What was preferred and passed over, each with the reason, what helps, and what serves instead.

    `fits` are the engines built for cards that lie in the artifact, `parity` the reports of checks on this machine,
    `layout` is that of an engine on the CPU.
    """

    passed_over: tuple[str, ...] = ()
    fits: tuple[Fit, ...] = ()
    parity: tuple[ParityReport, ...] = ()
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A warm engine, and how it came to be chosen."""

    engine: Engine
    choice: Choice = field(default_factory=Choice)


OpenEngine = Callable[[Artifact], Opened]
"""Opens an engine for an artifact, as `choose.open_engine` does with its options given."""
