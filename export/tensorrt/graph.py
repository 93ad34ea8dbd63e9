"""The ONNX file that an engine is built from: the artifact's network in the precision asked for, checked on the CPU."""

import logging
from dataclasses import dataclass
from pathlib import Path

from export.onnx_common import ExportError
from export.parity_gate import GateError
from export.progress import Reporter
from export.tensorrt.calibration import FEWEST, CalibrationError
from models.artifact.artifact import GRAPH, IMPORTED, WEIGHTS, Artifact, ParityReport, WeightSource
from models.artifact.reference import UnreadableReferenceError, read_reference
from models.catalog import CATALOG
from service.common.cpus import cpu_quota
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.engines.selection.parity import Bounds, compare, figures

log = logging.getLogger(__name__)

# Batch sizes were compared when the artifact was made; here rounding is, on a batch and on what is left of the images.
_BOUNDS = Bounds(batch_sizes=(8,))


@dataclass(frozen=True, slots=True)
class EngineGraph:
    """A graph for the builder; how it compared with PyTorch, and on how many photos int8 was calibrated."""

    path: Path
    parity: ParityReport | None = None
    photos: int | None = None


def engine_graph(
    artifact: Artifact, precision: Precision, calibration: Path | None, folder: Path, reporter: Reporter
) -> EngineGraph:
    """The graph of `artifact` in `precision`: its own in f32, else a new one in `folder`, which must be empty.

    Raises ExportError where there is no PyTorch network to export, WeightsError where its values do not fit it,
    CalibrationError for the photos, and GateError where the answers differ too much from those that it must give; of
    untrained values that is logged, unless they are no numbers at all.
    """
    if precision is Precision.F32:
        return EngineGraph(artifact.graph)
    if precision is Precision.INT8 and calibration is None:
        raise CalibrationError(
            f"int8 needs the ranges of each layer; use --calibration with a folder of {FEWEST} photos or more"
        )
    reporter.step("graph in fp16")
    half = folder / GRAPH
    _write_half(artifact, half)
    if precision is Precision.FP16:
        return EngineGraph(half, parity=_gate(artifact, precision, half, reporter))
    return _quantised(artifact, half, calibration, folder, reporter)


def _write_half(artifact: Artifact, path: Path) -> None:
    manifest = artifact.manifest
    architecture = CATALOG.get(manifest.name)
    if manifest.family == IMPORTED or architecture is None:
        raise ExportError(
            f"{manifest.name} has no PyTorch network to export in fp16, from which int8 is made too; its own graph is "
            "built with --precision f32"
        )
    if not (artifact.folder / WEIGHTS).is_file():
        raise ExportError(
            f"{artifact.folder} holds no {WEIGHTS}, from which the graph in fp16 is made; {_again(artifact)}, "
            "or use --precision f32"
        )
    from export.onnx_writer import write_onnx
    from export.tensorrt.fp16 import halved
    from models.build import ServedNetwork, build
    from models.weights.weights import load_state, read_state_dict

    network = build(architecture)
    weights = artifact.folder / WEIGHTS
    load_state(network, architecture, read_state_dict(weights), what=str(weights))
    write_onnx(
        ServedNetwork(halved(network, manifest.input), manifest.input).eval(), manifest.input, manifest.classes, path
    )


def _quantised(
    artifact: Artifact, half: Path, calibration: Path | None, folder: Path, reporter: Reporter
) -> EngineGraph:
    from export.tensorrt.calibration import ENOUGH, Photos
    from export.tensorrt.int8 import quantise

    assert calibration is not None
    photos = Photos(calibration, artifact.manifest.input)
    if len(photos) < ENOUGH:
        log.warning("int8 is calibrated on %d photos alone; use %d or more, if the check fails", len(photos), ENOUGH)
    reporter.step(f"calibration on {len(photos)} photos")
    quantised = folder / "int8" / GRAPH
    quantised.parent.mkdir()
    quantise(half, photos, quantised, lambda done, total: reporter.phase("photos", done, total))
    return EngineGraph(quantised, _gate(artifact, Precision.INT8, quantised, reporter), len(photos))


def _gate(artifact: Artifact, precision: Precision, graph: Path, reporter: Reporter) -> ParityReport:
    """The report of that graph in ONNX Runtime on the CPU. Raises GateError where it fails.

    The CPU computes in float32: this shows what rounding of weights and overflow of maps do, not sums in float16,
    which the card itself is checked for.
    """
    reporter.step(f"parity of the graph in {precision}")
    name = artifact.manifest.name
    try:
        reference = read_reference(artifact.folder)
    except UnreadableReferenceError as error:
        raise GateError(str(error)) from error
    if reference is None:
        raise GateError(f"{name} was exported by an older version, without the answers to check; {_again(artifact)}")
    placed = Artifact(graph.parent, artifact.version, artifact.manifest, artifact.labels)
    try:
        engine = OnnxRuntimeEngine(placed, Runtime.ONNXRUNTIME, slots=1, threads=cpu_quota(), max_batch=8)
    except EngineUnavailableError as error:
        raise GateError(f"{name} in {precision} does not run: {error}") from error
    try:
        report = compare(engine, precision, reference.images, reference.probabilities, _BOUNDS)
    finally:
        engine.close()
    report = report.model_copy(update={"precision": str(precision)})
    if not report.passed and artifact.manifest.weights.source is WeightSource.UNTRAINED and report.logit_cosine > 0:
        log.warning(
            "%s in %s is not what PyTorch computes, which says little: its values are noise, and in a deep network of "
            "noise rounding grows from layer to layer; the check on the card will decide",
            name,
            precision,
        )
    elif not report.passed:
        advice = "use --precision f32" if precision is Precision.FP16 else "use other photos, or --precision fp16"
        raise GateError(f"{name} in {precision} differs from PyTorch, no engine was built; {advice}: {figures(report)}")
    return report


def _again(artifact: Artifact) -> str:
    """What replaces the artifact: with --engine it would be kept."""
    root = artifact.folder.parents[1]
    return f"run first, without --engine: topfive export {artifact.manifest.name} --artifacts {root}"
