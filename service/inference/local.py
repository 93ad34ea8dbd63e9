"""The data plane over a repository in this process: classifies the bytes of an image."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from typing import TypeVar

from models.artifact.artifact import LABELS
from service.batching.queue import Admission
from service.common.clock import Clock, timeout_at
from service.common.errors import BadImage, BadRequest, Code, ModelNotFound, NotReady, TooLarge, TopfiveError
from service.common.logs import ANSWERS
from service.common.metrics import UNKNOWN, Metrics
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelVersion
from service.common.request_id import current_request_id
from service.common.statistics import ModelStatistics
from service.common.tasks import together
from service.common.types import DEFAULT_CROPS, ENSEMBLE, ENSEMBLE_PREFIX, TEN_CROPS, Classification, Timing
from service.inference.batches import infer
from service.inference.comparison import Comparison, ComparisonRow, ComparisonTiming, compared
from service.inference.dataplane import ClassifyOptions, Images, Inference
from service.inference.ensemble import Ensembles, ServedModel, canonical, mean, stripped
from service.inference.topk import resolve_top_k, top_k
from service.preprocessing.preprocessor import Preprocessor, RequestImage, joined
from service.repository.loaded_model import Lease
from service.repository.model_info import model_detail, model_layers
from service.repository.repository import Repository

A = TypeVar("A", Classification, Inference)

log = logging.getLogger(ANSWERS)

MAX_ROWS = 64
MAX_INPUTS = 640
"""Most network inputs of one comparison: rows times members of their ensembles times crops."""


class LocalDataPlane:
    """Classifies images with the models of a repository. Counts every request once, whatever its outcome."""

    extensions = ("model_repository", "statistics")

    def __init__(self, repository: Repository, preprocessor: Preprocessor, *, clock: Clock, metrics: Metrics) -> None:
        self.repository = repository
        self.clock = clock
        self.metrics = metrics
        self._preprocessor = preprocessor
        metrics.watch(preprocessor.gauges, "thread")
        self._ensembles = Ensembles(repository)
        self._listing: asyncio.Future[ModelList] | None = None

    def check_capacity(self, model: str | None, crops: int, version: int | None = None) -> None:
        """Refuse an image for a loaded model at capacity. Whatever else is wrong `classify` finds."""
        loaded = self.repository.loaded_model(model, version)
        if loaded is None:
            return
        try:
            loaded.batcher.check_capacity(crops)
        except TopfiveError as error:
            self.metrics.answered(loaded.metrics_label, error.code)
            raise

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        name = model or ""
        with closing(RequestImage(self._preprocessor, image, options.crops)) as request_image, Lease() as lease:
            return await self._counted(
                name,
                options.version,
                options.deadline,
                lease,
                lambda found: self._answer(found, request_image, options),
            )

    async def infer(self, images: Images, model: str, version: int | None, deadline: float) -> Inference:
        if model.startswith(ENSEMBLE_PREFIX):  # before its members are loaded
            self.metrics.answered(ENSEMBLE, Code.MODEL_NOT_FOUND)
            raise ModelNotFound("an ensemble is made at each request; ask for its members one by one")
        with Lease() as lease:
            return await self._counted(
                model, version, deadline, lease, lambda found: infer(self._preprocessor, found, images, deadline)
            )

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        """The answers of several models to one image file, which is decoded once for all that are loaded.

        One model runs after the other, so that each takes the time that it takes alone: first those that are loaded,
        then the others. A model that cannot answer has its error in its row. Raises the errors of the image and of the
        whole request: BadImage, TooLarge, BadRequest, NotReady.
        """
        started = self.clock.now()
        try:
            _check(options)
            names = self._row_names(models)
            _check_cost(names, options.crops)
        except TopfiveError as error:
            self.metrics.answered(UNKNOWN, error.code)
            raise
        with ExitStack() as stack:
            leases = {name: stack.enter_context(self._waiting(name)) for name in names}
            expected = [model.input for lease in leases.values() for model in lease.models]
            request_image = stack.enter_context(
                closing(RequestImage(self._preprocessor, image, options.crops, expected))
            )
            turns = sorted(names, key=lambda name: len(leases[name].models) <= name.count("+"))
            rows = {name: await self._row(request_image, name, options, leases[name]) for name in turns}
            for row, _ in rows.values():
                if isinstance(row.result, (BadImage, TooLarge)):
                    raise row.result
            total_ms = (self.clock.now() - started) * 1000
            return compared([rows[name] for name in names], ComparisonTiming(request_image.seconds * 1000, total_ms))

    async def models(self) -> ModelList:
        """One call reads all artifacts at a time; those that come meanwhile get its list."""
        if self._listing is None or self._listing.done():
            self._listing = asyncio.ensure_future(self._list_models())
            self._listing.add_done_callback(lambda done: done.cancelled() or done.exception())  # if all callers leave
        return await asyncio.shield(self._listing)  # a caller that leaves does not cancel it for the others

    async def model(self, name: str, version: int | None = None) -> ModelDetail:
        return await self.repository.read(lambda: model_detail(self.repository.entry(name, version)))

    async def layers(self, name: str, version: int | None = None) -> ModelLayers:
        repository = self.repository
        return await repository.read(lambda: model_layers(repository.entry(name, version), repository.root_of(name)))

    async def versions(self) -> list[ModelVersion]:
        return await self.repository.read(self.repository.versions)

    async def load(self, name: str, version: int | None = None) -> None:
        await self.repository.load(name, version)

    async def unload(self, name: str) -> None:
        await self.repository.unload(name)

    async def statistics(self, model: str | None, version: int | None) -> Sequence[ModelStatistics]:
        name = model and self.repository.canonical(model)
        found = [
            one
            for one in self.metrics.versions.values()
            if name in (None, one.model) and version in (None, one.version)
        ]
        if name is not None and not found:
            raise ModelNotFound(f"requested model {name!r} is not available: no such version of it was loaded")
        loaded = [self.repository.loaded_model(one.model, one.version) for one in found]
        return [one.report(model.memory_usage if model else ()) for one, model in zip(found, loaded, strict=True)]

    async def _list_models(self) -> ModelList:
        default = self.repository.default
        entries = self.repository.entries
        return ModelList(default, await self.repository.read(lambda: tuple(map(model_detail, entries()))))

    def check_alive(self) -> None:
        if not self.repository.alive:
            raise NotReady("an engine or its queue has failed for good; restart the server")
        if not self._preprocessor.alive:
            raise NotReady("every thread that decodes images is stuck; restart the server")

    def check_ready(self) -> None:
        self.repository.check_ready()
        self._preprocessor.check_ready()

    @property
    def ready(self) -> bool:
        """Whether `check_ready` raises nothing."""
        return self.repository.ready and not self._preprocessor.threads.stuck()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when readiness may have changed."""
        self.repository.on_change(listener)
        self._preprocessor.threads.on_stuck(listener)

    async def aclose(self, drain_s: float) -> None:
        """Finish what was accepted within `drain_s` seconds, then close every model and the decoding threads."""
        await self.repository.aclose(drain_s)
        self._preprocessor.close()

    async def served(self, name: str, lease: Lease | None = None, version: int | None = None) -> ServedModel:
        """The model or ensemble of that name, which `lease` keeps loaded. Raises the errors of `Repository.get`."""
        if name.startswith(ENSEMBLE_PREFIX):
            if version is not None:
                raise BadRequest(f"an ensemble has no version {version}; ask for its members one by one")
            return await self._ensembles.get(name, lease)
        return await self.repository.get(name or self.repository.default, lease, version)

    def _row_names(self, models: Sequence[str]) -> list[str]:
        """The names of the rows: each model once, as it was first written, without blank names."""
        named = [stripped(name) for name in models if name.strip()]
        wanted = named or self.repository.loaded
        if not wanted:
            raise NotReady("no model is loaded, so there is none to compare; name the models in the request")
        rows: dict[str, str] = {}
        for name in wanted:
            rows.setdefault(canonical(self.repository, name), name)
        if named and len(rows) > MAX_ROWS:
            raise BadRequest(f"{len(rows)} models are to be compared; name at most {MAX_ROWS}")
        return list(rows.values())

    def _waiting(self, name: str) -> Lease:
        """A lease that keeps those models of a row that are loaded, while the row waits for its turn."""
        lease = Lease()
        lease.begin_wait()
        for member in canonical(self.repository, name).removeprefix(ENSEMBLE_PREFIX).split("+"):
            if (model := self.repository.loaded_model(member)) is not None:
                lease.add(model)
        return lease

    async def _row(
        self, image: RequestImage, name: str, options: ClassifyOptions, lease: Lease
    ) -> tuple[ComparisonRow, str]:
        """The row, and the sha256 of its model's labels. The lease ends with it."""
        with lease:
            lease.end_wait()
            try:
                answer = await self._counted(
                    name, options.version, options.deadline, lease, lambda found: self._answer(found, image, options)
                )
            except Exception as error:  # the other models still answer
                return ComparisonRow(name, error), ""
            return ComparisonRow(name, answer), lease.models[0].artifact.manifest.files[LABELS]

    async def _counted(
        self,
        name: str,
        version: int | None,
        deadline: float,
        lease: Lease,
        answer: Callable[[ServedModel], Awaitable[A]],
    ) -> A:
        """The answer of that version of the model. The request is counted, whatever its outcome."""
        known = lease.models[0].metrics_label if lease.models else UNKNOWN
        label = ENSEMBLE if name.startswith(ENSEMBLE_PREFIX) else known
        began, code, timing_ms = self.clock.now(), "internal", None
        try:
            with timeout_at(deadline, self.clock):
                model = await self.served(name, lease, version)
                label = model.metrics_label
                answered = await answer(model)
            code, timing_ms = "ok", answered.timing_ms
        except TopfiveError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        finally:
            versions = {one.counters for one in lease.models}
            self.metrics.answered(label, code, timing_ms, versions, self.clock.now() - began)
        log.info("%s: %s in %.1f ms", current_request_id.get(), model.name, timing_ms.total)
        return answered

    async def _answer(self, model: ServedModel, image: RequestImage, options: ClassifyOptions) -> Classification:
        started = self.clock.now()
        count = resolve_top_k(options.top_k, len(model.labels), model.name)
        _check(options)
        admissions: list[Admission] = []
        try:
            for member in model.members:
                admissions.append(member.batcher.begin(options.crops))
            arrived, before_s = self.clock.now(), image.seconds
            prepared = await image.samples([member.input for member in model.members])
            spent_s = image.seconds - before_s  # the first row of a comparison pays for all; none other waits
            decode_s = sum({step: took for one in prepared for step, took in one.took_s.items()}.values())
            waited_s = self.clock.now() - arrived - spent_s  # for a decoding thread
            submitted = [
                member.batcher.submit(one.samples, deadline=options.deadline, admission=admission)
                for member, one, admission in zip(model.members, prepared, admissions, strict=True)
            ]
            runs = [await submitted[0]] if len(submitted) == 1 else await together(submitted)
        finally:
            for member, admission in zip(model.members, admissions, strict=False):
                member.batcher.end(admission)
        ran = [one for run in runs for one in run]
        probabilities = ran[0].value if len(ran) == 1 else mean([one.value for one in ran])
        queue_s = min(one.queue_s for one in ran)
        ended_s = max(one.queue_s + one.run_s for one in ran)  # all were submitted at once
        total_ms = (self.clock.now() - started - spent_s + decode_s) * 1000
        model.latency.record(total_ms)
        return Classification(
            predictions=top_k(probabilities, model.labels, count),
            model=model.card,
            engine=model.engine_info,
            preprocessing=joined(prepared) if len(prepared) > 1 else prepared[0].preprocessing,
            timing_ms=Timing(
                decode=decode_s * 1000,
                queue=(max(0.0, waited_s) + queue_s) * 1000,
                inference=(ended_s - queue_s) * 1000,
                total=total_ms,
            ),
            batch_size=max(one.batch_size for one in ran),
            warnings=model.warnings,
            members=model.member_cards,
        )


def _check(options: ClassifyOptions) -> None:
    """Raise BadRequest if no model could accept the options."""
    if options.crops not in (DEFAULT_CROPS, TEN_CROPS):
        raise BadRequest(f"crops is {options.crops}; send {DEFAULT_CROPS} or {TEN_CROPS}")
    if options.top_k is not None and options.top_k < 1:
        raise BadRequest(f"top_k is {options.top_k}; send 1 or more")


def _check_cost(names: Sequence[str], crops: int) -> None:
    """Raise BadRequest where a comparison of these models costs more than `MAX_INPUTS`."""
    inputs = crops * sum(name.count("+") + 1 for name in names)
    if inputs > MAX_INPUTS:
        raise BadRequest(
            f"the comparison has {inputs:,} network inputs (models, members of ensembles, crops); "
            f"ask for at most {MAX_INPUTS} at once"
        )
