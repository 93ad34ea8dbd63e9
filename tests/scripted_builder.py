"""A scripted stand-in for the module `tensorrt`, of which the builder's part is here: it notes what it is asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

NO_CARD = "Target GPU SM 61 is not supported by this TensorRT release."


@dataclass
class Script:
    """What happens in a build, and what was seen of it.

    `parser_errors` are (node, operator, description); `plan` is None where the builder gives nothing; `errors` and
    `warnings` are what it logs; `profile` what adding one answers; `accepts` whether a timing cache is taken;
    `during` is called between its two steps.
    """

    version: str = "11.4.0.106"
    parser_errors: list[tuple[str, str, str]] = field(default_factory=list)
    plan: bytes | None = b"a plan"
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    profile: int = 0
    shape_error: str | None = None
    driver: bool = True
    readable: bool = True
    accepts: bool = True
    timings: bytes = b"measured"
    during: Callable[[], None] = lambda: None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    steps: int = 0

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    Severity: ClassVar[type[Severity]] = Severity


class IProgressMonitor:
    """Base of progress monitors."""


class BuilderFlag(Enum):
    """The one flag that matters; it is on by default."""

    TF32 = 7


class MemoryPoolType(Enum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(IntEnum):
    """As in TensorRT, where the bit is 1 << 1."""

    STRONGLY_TYPED = 1


class Cache:
    """A timing cache; `serialize` gives what the script says it holds."""

    def __init__(self, script: Script, content: bytes) -> None:
        self.script = script
        self.content = content

    def serialize(self) -> bytes:
        return self.script.timings


class Config:
    """A builder's configuration; what is set on it is an attribute."""

    script: Script

    def __init__(self, script: Script) -> None:
        object.__setattr__(self, "script", script)
        object.__setattr__(self, "cache", None)

    def __setattr__(self, name: str, value: object) -> None:
        self.script.calls.append((name, value))
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self.script.calls.append((name, *arguments))

        if name in ("set_memory_pool_limit", "clear_flag"):
            return call
        raise AttributeError(name)

    def add_optimization_profile(self, profile: Any) -> int:
        script: Script = self.script
        script.calls.append(("add_optimization_profile", tuple(profile.shapes)))
        return script.profile

    def create_timing_cache(self, content: bytes) -> Cache | None:
        """A cache of that content; None for one that cannot be read."""
        self.script.calls.append(("create_timing_cache", content))
        return Cache(self.script, content) if self.script.readable or not content else None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        """Whether it is taken; an empty one always is."""
        self.script.calls.append(("set_timing_cache", cache.content, ignore_mismatch))
        taken = self.script.accepts or not cache.content
        if taken:
            object.__setattr__(self, "cache", cache)
        return taken

    def get_timing_cache(self) -> Cache:
        assert isinstance(self.cache, Cache)
        return self.cache


class Builder:
    """Builds by its script, in two steps of one phase."""

    script: ClassVar[Script]

    def __init__(self, logger: Any) -> None:
        if not self.script.driver:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> Any:
        self.script.calls.append(("create_network", flags))
        return SimpleNamespace(get_input=lambda index: SimpleNamespace(name="image"))

    def create_builder_config(self) -> Config:
        return Config(self.script)

    def create_optimization_profile(self) -> Any:
        """A profile that keeps its shapes."""
        shapes: list[Any] = []

        def set_shape(*arguments: Any) -> None:
            if self.script.shape_error is not None:
                raise ValueError(self.script.shape_error)
            shapes.extend(arguments)

        return SimpleNamespace(set_shape=set_shape, shapes=shapes)

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        """The script's plan; None where a step is answered with False."""
        monitor = config.__dict__["progress_monitor"]
        monitor.phase_start("Building engine", None, 2)
        for step in self._steps():
            if not monitor.step_complete("Building engine", step):
                self.logger.log(Severity.ERROR, "BuildCanceled")
                return None
        monitor.phase_finish("Building engine")
        for severity, lines in ((Severity.WARNING, self.script.warnings), (Severity.ERROR, self.script.errors)):
            for line in lines:
                self.logger.log(severity, line)
        return self.script.plan

    def _steps(self) -> Iterator[int]:
        for step in range(2):
            self.script.steps += 1
            yield step
            self.script.during()


class OnnxParser:
    """Reads by the script."""

    script: ClassVar[Script]

    def __init__(self, network: Any, logger: Any) -> None:
        self.num_errors = len(self.script.parser_errors)

    def parse_from_file(self, path: str) -> bool:
        self.script.calls.append(("parse_from_file", path))
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        """An error, whose parts are methods."""
        node, operator, text = self.script.parser_errors[index]
        return SimpleNamespace(node_name=lambda: node, node_operator=lambda: operator, desc=lambda: text)


def fake(script: Script) -> ModuleType:
    """The module `tensorrt` that follows `script`."""
    made = ModuleType("tensorrt")
    names: dict[str, Any] = {
        "__version__": script.version,
        "ILogger": ILogger,
        "IProgressMonitor": IProgressMonitor,
        "BuilderFlag": BuilderFlag,
        "MemoryPoolType": MemoryPoolType,
        "NetworkDefinitionCreationFlag": NetworkDefinitionCreationFlag,
        "Builder": type("Builder", (Builder,), {"script": script}),
        "OnnxParser": type("OnnxParser", (OnnxParser,), {"script": script}),
    }
    for name, value in names.items():
        setattr(made, name, value)
    return made
