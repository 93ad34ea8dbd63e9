"""Builds engines for NVIDIA cards into an artifact: its graph in a precision, checked, and a plan for each group of
cards. What is interrupted or fails leaves nothing of the plan at hand; those before it stand.
"""

import hashlib
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from export.progress import Reporter, tool_versions
from export.tensorrt.builder import BuildError, Job, build_plan
from export.tensorrt.graph import EngineGraph, engine_graph
from export.tensorrt.targets import Order
from models.artifact.artifact import GRAPH, Artifact, ParityReport, sha256
from models.artifact.engine_plan import (
    BatchProfile,
    ComputeCapability,
    EnginePlan,
    PlanError,
    PlanRecord,
    read_plans,
    write_plan,
)
from models.artifact.files import CacheFile, file_name
from service.common.types import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engines:
    """The plans that were written, and how their graph compared with PyTorch; None for f32, the artifact's own.

    `failure` is what kept the next of them from being built.
    """

    plans: tuple[EnginePlan, ...]
    parity: ParityReport | None
    failure: BuildError | OSError | None = None


def steps(order: Order) -> int:
    """How many steps `build_engines` reports: those of the graph by its precision, and one for each group of cards."""
    return {Precision.FP16: 2, Precision.INT8: 3}.get(order.precision, 0) + len(order.groups)


def present_plans(artifact: Artifact, order: Order, version: str) -> list[EnginePlan]:
    """The plans of `order` that are in the artifact already, whole and built by `version` from its graph."""
    profile = order.profile_for(artifact.manifest.max_batch)
    plans, _ = read_plans(artifact.folder)
    return [
        plan
        for plan in plans
        if plan.record.flavour is order.flavour
        and plan.record.version == version
        and plan.record.precision == order.precision
        and plan.record.profile == profile
        and plan.record.card == (order.card.name if order.card else None)
        and plan.record.graph_sha256 == artifact.manifest.files[GRAPH]
        and any(plan.record.targets == tuple(map(str, group)) for group in order.groups)
        and _whole(plan)
    ]


def build_engines(artifact: Artifact, order: Order, trt: ModuleType, reporter: Reporter) -> Engines:
    """Write a plan into the artifact for each group of cards.

    Raises BuildError with the builder's own words, OrderError for the batch sizes, OSError where the artifact's folder
    takes no more, before anything is computed where it takes nothing, and what `engine_graph` raises. A plan that fails
    after another was written ends it without raising: that one stands.
    """
    profile = order.profile_for(artifact.manifest.max_batch)
    # Beside the artifact's files, not in /tmp: that of a container holds no VGG in fp16.
    with tempfile.TemporaryDirectory(prefix=".engine-", dir=artifact.folder) as folder:
        graph = engine_graph(artifact, order.precision, order.calibration, Path(folder), reporter)
        plans: list[EnginePlan] = []
        for group in order.groups:
            try:
                plans.append(_plan(artifact, order, profile, group, graph, trt, reporter))
            except (BuildError, OSError) as error:
                if not plans:
                    raise
                return Engines(tuple(plans), graph.parity, error)
    return Engines(tuple(plans), graph.parity)


def _plan(
    artifact: Artifact,
    order: Order,
    profile: BatchProfile,
    group: tuple[ComputeCapability, ...],
    graph: EngineGraph,
    trt: ModuleType,
    reporter: Reporter,
) -> EnginePlan:
    reporter.step(f"engine for {', '.join(map(str, group))}")
    job = Job(order.flavour, graph.path, artifact.manifest.input.crop, profile, group)
    if order.card is not None:
        name = file_name("tensorrt", str(trt.__version__), order.card.name)
        cache = CacheFile(order.cache / "timing" / f"{name}.cache", "kernels are timed again")
        written = build_plan(trt, replace(job, timings=cache.read() or b""), reporter.phase)
        cache.write(written.timings)
    else:
        written = build_plan(trt, job, reporter.phase)
    record = PlanRecord(
        flavour=order.flavour,
        version=str(trt.__version__),
        targets=tuple(map(str, group)),
        precision=order.precision,
        profile=profile,
        card=order.card.name if order.card else None,
        graph_sha256=artifact.manifest.files[GRAPH],
        source_sha256=sha256(graph.path),
        sha256=hashlib.sha256(written.content).hexdigest(),
        size_bytes=len(written.content),
        build_s=round(written.build_s, 3),
        calibration_images=graph.photos,
        warnings=written.warnings,
        tools=tool_versions(),
    )
    return write_plan(artifact.folder, written.content, record)


def _whole(plan: EnginePlan) -> bool:
    try:
        plan.content()
    except PlanError as error:
        log.warning("%s", error)
        return False
    return True
