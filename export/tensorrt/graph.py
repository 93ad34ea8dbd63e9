"""The ONNX file that an engine is built from: the artifact's network in a precision, checked on the CPU."""

import logging
from dataclasses import dataclass
from pathlib import Path

from export.common import ExportError, Reporter
from export.parity_gate import ParityError
from models.artifact.artifact import GRAPH, IMPORTED, WEIGHTS, Artifact, ParityReport, WeightSource
from models.artifact.reference import UnreadableReferenceError, read_reference
from models.catalog import CATALOG
from service.common.cpus import cpu_quota
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.engines.selection.parity import compare, missed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineGraph:
    """A graph for the builder, how it compares with PyTorch, and the number of photos that calibrated int8."""

    path: Path
    parity: ParityReport | None = None
    photos: int | None = None


def engine_graph(
    artifact: Artifact, precision: Precision, calibration: Path | None, folder: Path, reporter: Reporter
) -> EngineGraph:
    """The graph of `artifact` in `precision`: its own in f32, else a new one in the empty `folder`.

    Raises ExportError if there is no PyTorch network to export or the photos do not calibrate it, WeightsError if
    the weights do not fit, ParityError if the answers differ too much. With untrained weights a difference is only
    logged, unless the answers are not finite.
    """
    if precision is Precision.F32:
        return EngineGraph(artifact.graph)
    if precision is Precision.INT8 and calibration is None:
        raise ExportError("int8 needs the ranges of each layer; use --calibration with a folder of 10 photos or more")
    reporter.step("graph in fp16")
    half = folder / GRAPH
    _write_half(artifact, half)
    if calibration is None:
        return EngineGraph(half, _check(artifact, precision, half, reporter))
    return _quantised(artifact, half, calibration, folder, reporter)


def _write_half(artifact: Artifact, path: Path) -> None:
    manifest = artifact.manifest
    architecture = CATALOG.get(manifest.name)
    if manifest.family == IMPORTED or architecture is None:
        raise ExportError(
            f"{manifest.name} has no PyTorch network to export in fp16, from which int8 is made too; its own graph is "
            "built with --precision f32"
        )
    weights = artifact.folder / WEIGHTS
    if not weights.is_file():
        raise ExportError(
            f"{artifact.folder} holds no {WEIGHTS}, from which the graph in fp16 is made; {_remedy(artifact)}, "
            "or use --precision f32"
        )
    from export.onnx_writer import write_onnx
    from export.tensorrt.fp16 import to_half
    from models.build import ServedNetwork, build
    from models.weights.weights import load_state, read_state_dict

    network, spec = build(architecture), manifest.input
    load_state(network, architecture, read_state_dict(weights), what=str(weights))
    write_onnx(ServedNetwork(to_half(network), spec).eval(), spec, manifest.classes, path)


def _quantised(artifact: Artifact, half: Path, calibration: Path, folder: Path, reporter: Reporter) -> EngineGraph:
    from export.calibration import ENOUGH_PHOTOS, CalibrationPhotos
    from export.tensorrt.int8 import quantise

    photos = CalibrationPhotos(calibration, artifact.manifest.input)
    if len(photos) < ENOUGH_PHOTOS:
        log.warning("only %d photos calibrate int8; use %d or more if the check fails", len(photos), ENOUGH_PHOTOS)
    reporter.step(f"calibration on {len(photos)} photos")
    quantised = folder / "int8" / GRAPH
    quantised.parent.mkdir()
    quantise(half, photos, quantised, lambda done, total: reporter.phase("photos", done, total))
    return EngineGraph(quantised, _check(artifact, Precision.INT8, quantised, reporter), len(photos))


def _check(artifact: Artifact, precision: Precision, graph: Path, reporter: Reporter) -> ParityReport:
    """The report of that graph in ONNX Runtime on the CPU. Raises ParityError if it fails.

    The CPU computes in float32. This shows rounding of weights and overflow of feature maps, not sums in float16, which
    the service checks on the GPU itself.
    """
    reporter.step(f"parity of the graph in {precision}")
    name = artifact.manifest.name
    try:
        reference = read_reference(artifact.folder)
    except UnreadableReferenceError as error:
        raise ParityError(str(error)) from error
    if reference is None:
        raise ParityError(f"{name} was exported by an older version, without the answers to check; {_remedy(artifact)}")
    placed = Artifact(graph.parent, artifact.version, artifact.manifest, artifact.labels)
    try:
        engine = OnnxRuntimeEngine(placed, Runtime.ONNXRUNTIME, slots=1, threads=cpu_quota(), max_batch=8)
    except EngineUnavailableError as error:
        raise ParityError(f"{name} in {precision} does not run: {error}") from error
    try:
        report = compare(engine, precision, reference.images, reference.probabilities)
    finally:
        engine.close()
    report = report.model_copy(update={"precision": str(precision)})
    if report.passed:
        return report
    if artifact.manifest.weights.source is WeightSource.UNTRAINED and report.logit_cosine > 0:
        log.warning(
            "%s in %s differs from PyTorch, which says little: its weights are noise, and in a deep network of noise "
            "rounding grows from layer to layer; the check on the GPU decides",
            name,
            precision,
        )
        return report
    advice = "use --precision f32" if precision is Precision.FP16 else "use other photos, or --precision fp16"
    raise ParityError(f"{name} in {precision} differs from PyTorch, no engine was built; {advice}: {missed(report)}")


def _remedy(artifact: Artifact) -> str:
    """The command that replaces the artifact; --engine would keep it."""
    root = artifact.folder.parents[1]
    return f"run first, without --engine: topfive export {artifact.manifest.name} --artifacts {root}"
