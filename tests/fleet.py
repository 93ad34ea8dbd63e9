"""Several models under one classifier: copies of `tiny`, each on a fake engine of its own."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from models.artifact.artifact import LABELS, MANIFEST, Artifact, Manifest, write_manifest
from models.catalog import CATALOG, InputSpec
from models.labels import Label, write_labels
from service.common.metrics import Metrics
from service.common.types import BatchLimits, Classification, ImageLimits, Samples
from service.engines.base import CPU
from service.engines.selection.opening import Opened
from service.inference.comparison import Comparison
from service.inference.dataplane import ClassifyOptions
from service.inference.local import LocalDataPlane
from service.preprocessing import decode, transforms
from service.preprocessing.decode import DecodedImage
from service.preprocessing.preprocessor import Preprocessor
from service.repository.device_memory import Device
from service.repository.repository import Repository
from tests.exposition import families
from tests.fakes import FakeEngine, ManualClock, reached


def copy_model(root: Path, name: str, changes: Mapping[str, Any] | None = None, digits: int = 0) -> None:
    """Another model beside `tiny`: its copy under another name, with other facts, or with so many digits as classes."""
    folder = root / name / "1"
    shutil.copytree(root / "tiny" / "1", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.update({"name": name, **(changes or {})})
    if digits:
        manifest["classes"] = digits
        write_labels(folder / LABELS, [Label(digit, "", f"digit {digit}") for digit in range(digits)])
    write_manifest(folder, Manifest.model_validate(manifest))


class Counted:
    """Reads the counters of a service, by the text that Prometheus would get. Its heirs have `metrics`."""

    metrics: Metrics

    def answered(self) -> dict[tuple[str, str], float]:
        """How many answers ended how, by model and code."""
        return self._counts("topfive_requests_total", "code")

    def items(self) -> dict[tuple[str, str], float]:
        """How many images the batchers were given, by model and outcome; those that are zero left out."""
        return self._counts("topfive_items_total", "outcome")

    def _counts(self, name: str, label: str) -> dict[tuple[str, str], float]:
        return {
            (sample.labels["model"], sample.labels[label]): sample.value
            for family in families(self.metrics)
            for sample in family.samples
            if sample.name == name and sample.value
        }


class Fleet(Counted):
    """A classifier with an engine for each model, on a device of its own, and counts of what its threads did."""

    def __init__(self, root: Path, engines: Mapping[str, FakeEngine], capacity: int) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.engines = engines
        self.did: Counter[str] = Counter()
        self.repository = Repository(
            root,
            CATALOG,
            lambda: [Device(CPU, self._open)],
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch, capacity),
            clock=self.clock,
            metrics=self.metrics,
        )
        decoder = Preprocessor(ImageLimits(), threads=2, clock=self.clock, decode=self._read, crop=self._cut)
        self.classifier = LocalDataPlane(self.repository, decoder, clock=self.clock, metrics=self.metrics)

    def _open(self, artifact: Artifact) -> Opened:
        return Opened(self.engines[artifact.manifest.name])

    def _read(self, data: bytes, limits: ImageLimits, enough: int | None) -> DecodedImage:
        self.did["decoded"] += 1
        return decode.decode_image(data, limits, enough)

    def _cut(self, spec: InputSpec, picture: DecodedImage, count: int) -> Samples:
        self.did["resized"] += 1
        return transforms.make_samples(spec, picture, count)

    async def classify(self, data: bytes, model: str, *, top_k: int = 5, crops: int = 1) -> Classification:
        """One model or ensemble."""
        deadline = self.clock.now() + 60
        return await self.classifier.classify(data, model, ClassifyOptions(deadline, top_k, crops))

    async def compare(
        self, data: bytes, models: Sequence[str] = (), *, top_k: int = 5, crops: int = 1, within_s: float = 60.0
    ) -> Comparison:
        """Many of them."""
        deadline = self.clock.now() + within_s
        return await self.classifier.compare(data, models, ClassifyOptions(deadline, top_k, crops))


@asynccontextmanager
async def fleet_of(root: Path, *names: str, capacity: int = 64, load: bool = True) -> AsyncIterator[Fleet]:
    """A fleet of the exported models of those names, closed at the end."""
    fleet = Fleet(root, {name: FakeEngine(device=name) for name in names}, capacity)
    try:
        if load:
            await fleet.repository.start(names)
        yield fleet
    finally:
        for engine in fleet.engines.values():
            engine.gate.set()
        closing = asyncio.create_task(fleet.classifier.aclose(60))
        await reached(closing.done)
        await closing
