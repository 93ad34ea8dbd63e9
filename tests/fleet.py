"""A data plane over copies of `tiny`, each on a fake engine of its own."""

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
from service.batching.batcher import Batcher
from service.common.metrics import Metrics
from service.common.types import BatchLimits, Classification, ImageLimits, Probabilities, Sample, Samples
from service.engines.base import CPU
from service.inference.comparison import Comparison
from service.inference.dataplane import ClassifyOptions
from service.inference.local import LocalDataPlane
from service.preprocessing import decode, transforms
from service.preprocessing.decode import DecodedImage
from service.preprocessing.preprocessor import Preprocessor
from service.repository.device_memory import Device
from service.repository.exported import ExportedModels
from service.repository.repository import Repository
from tests.conftest import png
from tests.exposition import samples
from tests.fakes import FakeEngine, ManualClock, Opener, SlowImage, reached

Call = asyncio.Task[Classification]


def copy_model(root: Path, name: str, changes: Mapping[str, Any] | None = None, digits: int = 0) -> None:
    """Copy `tiny` to another name, with these changes of its manifest, or with so many digits as its classes."""
    folder = root / name / "1"
    shutil.copytree(root / "tiny" / "1", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.update({"name": name, **(changes or {})})
    if digits:
        manifest["classes"] = digits
        write_labels(folder / LABELS, [Label(digit, "", f"digit {digit}") for digit in range(digits)])
    write_manifest(folder, Manifest.model_validate(manifest))


def copy_version(root: Path, version: int, name: str = "tiny") -> None:
    """Copy version 1 of a model to another version, whose manifest tells it apart, in one step as an export does."""
    draft = root / f".{name}-{version}"
    shutil.copytree(root / name / "1", draft)
    manifest = json.loads((draft / MANIFEST).read_text())
    write_manifest(draft, Manifest.model_validate({**manifest, "paper": f"version {version}"}))
    draft.rename(root / name / str(version))


class Fleet:
    """A data plane with an engine for each model, each on a device of its own.

    `did` counts what the threads of the preprocessor did.
    """

    def __init__(self, root: Path, names: Sequence[str], capacity: int, limits: ImageLimits, threads: int) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.engines = {name: FakeEngine(device=name) for name in names}
        self.opener = Opener(self._engine)
        self.did: Counter[str] = Counter()
        self.images: list[SlowImage] = []
        self.repository = Repository(
            ExportedModels(root, CATALOG),
            lambda: [Device(CPU, self.opener)],
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch, capacity),
            clock=self.clock,
            metrics=self.metrics,
        )
        self.preprocessor = Preprocessor(
            limits, threads=threads, clock=self.clock, decode=self._decode, crop=self._crop
        )
        self.data_plane = LocalDataPlane(self.repository, self.preprocessor, clock=self.clock, metrics=self.metrics)

    def _engine(self, artifact: Artifact) -> FakeEngine:
        return self.engines[artifact.manifest.name]

    def _decode(self, data: bytes, limits: ImageLimits, needed_side: int | None) -> DecodedImage:
        self.did["decoded"] += 1
        return decode.decode_image(data, limits, needed_side)

    def _crop(self, spec: InputSpec, image: DecodedImage, count: int) -> Samples:
        self.did["resized"] += 1
        return transforms.make_samples(spec, image, count)

    async def classify(
        self,
        data: bytes,
        model: str | None = "tiny",
        *,
        top_k: int = 5,
        crops: int = 1,
        within_s: float = 60.0,
        version: int | None = None,
    ) -> Classification:
        """The answer of one model or ensemble."""
        deadline = self.clock.now() + within_s
        return await self.data_plane.classify(data, model, ClassifyOptions(deadline, top_k, crops, version))

    async def compare(
        self, data: bytes, models: Sequence[str] = (), *, top_k: int = 5, crops: int = 1, within_s: float = 60.0
    ) -> Comparison:
        """The answers of several."""
        deadline = self.clock.now() + within_s
        return await self.data_plane.compare(data, models, ClassifyOptions(deadline, top_k, crops))

    def begin(self, data: bytes, model: str = "tiny", *, crops: int = 1, within_s: float = 60.0) -> Call:
        """A request in a task of its own."""
        return asyncio.create_task(self.classify(data, model, crops=crops, within_s=within_s))

    async def decoding(self, *, within_s: float = 60.0) -> tuple[Call, SlowImage]:
        """A request whose image is being decoded until its gate is set."""
        image = SlowImage(png(1))
        self.images.append(image)
        call = self.begin(image, within_s=within_s)
        await reached(image.decoding.is_set)
        return call, image

    async def busy(self, model: str = "tiny", queued: int = 0) -> list[Call]:
        """A request that runs until the gate of its engine is set, and so many more that wait behind it."""
        self.engines[model].gate.clear()
        batcher = await self.batcher(model)
        calls: list[Call] = []
        for shade in range(queued + 1):
            calls.append(self.begin(png(shade), model))
            await reached(lambda: batcher.in_flight + batcher.depth == len(calls))
        return calls

    async def batcher(self, model: str = "tiny") -> Batcher[Sample, Probabilities]:
        """The queue of a model, which is loaded if it is not."""
        return (await self.repository.get(model)).batcher

    def answered(self) -> dict[tuple[str, str], float]:
        """How many requests ended how, by model and code."""
        return self._counts("topfive_requests_total", "code")

    def items(self) -> dict[tuple[str, str], float]:
        """How many images ended how in the batchers, by model and outcome."""
        return self._counts("topfive_items_total", "outcome")

    def _counts(self, name: str, label: str) -> dict[tuple[str, str], float]:
        found = samples(self.metrics, name)
        return {(sample.labels["model"], sample.labels[label]): sample.value for sample in found if sample.value}


@asynccontextmanager
async def fleet_of(
    root: Path,
    *names: str,
    capacity: int = 64,
    limits: ImageLimits | None = None,
    threads: int = 2,
    load: bool = True,
) -> AsyncIterator[Fleet]:
    """A fleet of the exported models of those names, closed at the end."""
    fleet = Fleet(root, names, capacity, limits or ImageLimits(), threads)
    try:
        if load:
            await fleet.repository.start(names)
        yield fleet
    finally:
        fleet.opener.gate.set()
        for engine in fleet.engines.values():
            engine.gate.set()
        for image in fleet.images:
            image.gate.set()
        await asyncio.wait_for(fleet.data_plane.aclose(60), 30)
