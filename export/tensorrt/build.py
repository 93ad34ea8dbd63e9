"""Builds TensorRT engines into an artifact: its graph in a precision, checked, and a plan for each group of GPUs.

An interruption or a failure leaves nothing of the current plan, and keeps the plans before it.
"""

import hashlib
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from export.common import Reporter, tool_versions
from export.tensorrt.builder import BuildError, BuildJob, build_plan
from export.tensorrt.graph import EngineGraph, engine_graph
from export.tensorrt.targets import BuildRequest
from models.artifact.artifact import GRAPH, Artifact, ParityReport, sha256
from models.artifact.engine_plan import EnginePlan, PlanError, PlanRecord, read_plans, write_plan
from models.artifact.files import CacheFile, file_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The new plans, and how their graph compares with PyTorch; None in f32, which is the artifact's own graph.

    `failure` is the error of the next plan, if one failed.
    """

    plans: tuple[EnginePlan, ...]
    parity: ParityReport | None
    failure: BuildError | OSError | None = None


def present_plans(artifact: Artifact, request: BuildRequest, version: str) -> list[EnginePlan]:
    """The undamaged plans of `request` in the artifact that `version` built from its graph."""
    profile = request.profile_for(artifact.manifest.max_batch)
    plans, _ = read_plans(artifact.folder)
    return [
        plan
        for plan in plans
        if plan.record.flavour is request.flavour
        and plan.record.version == version
        and plan.record.precision == request.precision
        and plan.record.profile == profile
        and plan.record.card == (request.card.name if request.card else None)
        and plan.record.graph_sha256 == artifact.manifest.files[GRAPH]
        and any(plan.record.targets == tuple(map(str, group)) for group in request.groups)
        and _is_undamaged(plan)
    ]


def build_engines(artifact: Artifact, request: BuildRequest, trt: ModuleType, reporter: Reporter) -> BuildResult:
    """Write a plan into the artifact for each group of GPUs.

    Raises BuildError with the builder's own message, BuildRequestError for the batch sizes, OSError if the folder of
    the artifact cannot be written, and what `engine_graph` raises. A plan that fails after another was written ends the
    build without an exception.
    """
    profile = request.profile_for(artifact.manifest.max_batch)
    # The folder lies beside the artifact's files: /tmp of a container has no room for VGG in fp16.
    with tempfile.TemporaryDirectory(prefix=".engine-", dir=artifact.folder) as folder:
        graph = engine_graph(artifact, request.precision, request.calibration, Path(folder), reporter)
        plans: list[EnginePlan] = []
        for group in request.groups:
            reporter.step(f"engine for {', '.join(map(str, group))}")
            job = BuildJob(request.flavour, graph.path, artifact.manifest.input.crop, profile, group)
            try:
                plans.append(_build(artifact, request, job, graph, trt, reporter))
            except (BuildError, OSError) as error:
                if not plans:
                    raise
                return BuildResult(tuple(plans), graph.parity, error)
    return BuildResult(tuple(plans), graph.parity)


def _build(
    artifact: Artifact, request: BuildRequest, job: BuildJob, graph: EngineGraph, trt: ModuleType, reporter: Reporter
) -> EnginePlan:
    if request.card is not None:
        name = file_name("tensorrt", str(trt.__version__), request.card.name)
        cache = CacheFile(request.cache / "timing" / f"{name}.cache", "kernels are timed again")
        built = build_plan(trt, replace(job, timings=cache.read() or b""), reporter.phase)
        cache.write(built.timings)
    else:
        built = build_plan(trt, job, reporter.phase)
    record = PlanRecord(
        flavour=request.flavour,
        version=str(trt.__version__),
        targets=tuple(map(str, job.targets)),
        precision=request.precision,
        profile=job.profile,
        card=request.card.name if request.card else None,
        graph_sha256=artifact.manifest.files[GRAPH],
        source_sha256=sha256(graph.path),
        sha256=hashlib.sha256(built.content).hexdigest(),
        size_bytes=len(built.content),
        build_s=round(built.build_s, 3),
        calibration_images=graph.photos,
        warnings=built.warnings,
        tools=tool_versions(),
    )
    return write_plan(artifact.folder, built.content, record)


def _is_undamaged(plan: EnginePlan) -> bool:
    try:
        plan.content()
    except PlanError as error:
        log.warning("%s", error)
        return False
    return True
