"""Quantizes the graph of an artifact to int8 for CPUs, with NNCF, checks it against f32, and measures its speed."""

import contextlib
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
import openvino as ov

from export.calibration import ENOUGH_PHOTOS, CalibrationPhotos
from export.common import ExportError, QuantizationRequest, Reporter
from export.gate_images import PHOTOS
from export.parity_gate import ParityError
from models.artifact.artifact import GRAPH, Artifact, ParityReport, Thresholds, WeightSource
from models.artifact.measured import delete_accuracy
from models.artifact.quantized import PrecisionSpeed, QuantizationRecord, QuantizedGraph, write_quantized
from models.labels import Label
from service.common.cpus import cpu_quota
from service.common.packages import package_version
from service.common.types import Batch, Precision, Probabilities, Runtime
from service.engines.base import Engine
from service.engines.openvino import OpenVinoEngine
from service.engines.selection.cpu_layout import at_most, conditions_here, default_layout
from service.engines.selection.int8 import slow_int8
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import BATCH_SIZES, compare, missed
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions
from service.offline.images import OfflineError, read_dataset

_PRESET = "mixed"
_ASIDE = 5  # one photo of so many is kept aside
# A photo between two classes may change by much, so agreement decides. SqueezeNet 1.1 with trained weights differs by
# 0.31 in the worst of 48 photos, has a cosine of 0.973 there, and agrees in 98 % of them.
_THRESHOLDS = Thresholds(max_abs_diff=0.5, logit_cosine=0.95, top1_agreement=0.95, top5_agreement=0.9)
_LARGEST_DROP = 0.01  # of the accuracy that NNCF controls
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_ROUNDS, _ROUND_S = 5, 0.4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Photos:
    """The photos, which of them calibrate, and those kept aside: their samples, and the artifact's answers in f32.

    `truths` are the class ids of the photos that calibrate, in their order; empty if the folder has no labels.
    """

    found: CalibrationPhotos
    calibrating: tuple[int, ...]
    images: Batch
    reference: Probabilities
    truths: tuple[int, ...]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for content in sorted(self.found.files[index].read_bytes() for index in self.calibrating):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A graph in OpenVINO's format in a temporary folder, and how it compares with f32."""

    path: Path
    floating_point: tuple[str, ...]
    accuracy_control: bool
    parity: ParityReport


def quantize(artifact: Artifact, request: QuantizationRequest, reporter: Reporter) -> QuantizedGraph:
    """Write the int8 graph into the artifact.

    If its answers differ too much, the first and the last layer stay in floating point; then NNCF chooses layers by
    their accuracy, if the photos have labels. Raises CalibrationError for too few photos, ParityError if the answers
    still differ, EngineUnavailableError if the artifact does not run in OpenVINO in f32, ExportError, OSError. What
    `topfive evaluate` measured with an older int8 graph is deleted.
    """
    name, untrained = artifact.manifest.name, artifact.manifest.weights.source is WeightSource.UNTRAINED
    if (nncf_version := package_version("nncf")) is None:
        raise ExportError("NNCF is not installed; quantizing needs: pip install '.[int8]'")
    choose_precision(artifact, Runtime.OPENVINO, Precision.F32)
    if warning := slow_int8():
        log.warning("%s", warning)
    reporter.step("photos")
    photos = _photos(artifact, request)
    if len(photos.found) < ENOUGH_PHOTOS:
        log.warning(
            "only %d photos calibrate and check int8; use %d or more, such as the model will see",
            len(photos.found),
            ENOUGH_PHOTOS,
        )
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=artifact.folder) as folder:
        tried: list[_Quantized] = []
        for one in _attempts(artifact, photos, Path(folder), reporter):
            tried.append(one)
            if one.parity.passed or untrained:
                break
        best = tried[-1]
        if not best.parity.passed:
            if not untrained or best.parity.logit_cosine <= 0:
                raise ParityError(
                    f"{name} in int8 differs from f32, nothing was written; use other or more photos, labelled ones if "
                    f"you have them: {missed(best.parity)}"
                )
            log.warning(
                "%s in int8 differs from f32, which says little: its weights are noise (%s)", name, missed(best.parity)
            )
        reporter.step("speed")
        record = QuantizationRecord(
            nncf_version=nncf_version,
            openvino_version=best.parity.runtime_version,
            preset=_PRESET,
            floating_point=best.floating_point,
            accuracy_control=best.accuracy_control,
            photos=len(photos.calibrating),
            photos_sha256=photos.sha256,
            parity=best.parity,
            conditions=conditions_here(cpu_quota()),
            speeds=_speeds(artifact, best.path, photos.images),
            date=datetime.now(UTC).date().isoformat(),
            source_sha256=artifact.manifest.files[GRAPH],
        )
        delete_accuracy(artifact.manifest_file, Runtime.OPENVINO, Precision.INT8)
        return write_quantized(
            artifact.folder, best.path.read_bytes(), best.path.with_suffix(".bin").read_bytes(), record
        )


def _photos(artifact: Artifact, request: QuantizationRequest) -> _Photos:
    folder = request.calibration or PHOTOS
    most = request.samples * _ASIDE // (_ASIDE - 1)
    photos = CalibrationPhotos(folder, artifact.manifest.input, most)
    # They are sorted by contrast, so that both parts have photos of every kind.
    aside = range(_ASIDE // 2, len(photos), _ASIDE)
    calibrating = tuple(index for index in range(len(photos)) if index not in aside)
    images = np.stack([photos[index] for index in aside])
    engine = _open(artifact, Precision.F32)
    try:
        reference = np.concatenate([engine.run(images[row : row + 1]) for row in range(len(images))])
    finally:
        engine.close()
    truths = _truths(folder, artifact.labels, artifact.manifest.name)
    known = [truths.get(photos.files[index].resolve()) for index in calibrating]
    labelled = tuple(one for one in known if one is not None)
    return _Photos(photos, calibrating, images, reference, labelled if len(labelled) == len(known) else ())


def _truths(folder: Path, labels: Sequence[Label], name: str) -> Mapping[Path, int]:
    """The class id of each photo, if the folder has a folder for each class; else none."""
    try:
        files = read_dataset(folder).files(labels, name)
    except OfflineError:
        return {}
    return {one.path.resolve(): one.truth for one in files if one.truth is not None}


def _attempts(artifact: Artifact, photos: _Photos, folder: Path, reporter: Reporter) -> Iterator[_Quantized]:
    """The graphs to try, each with more layers in floating point than the one before."""
    os.environ["NNCF_CI"] = "1"  # else NNCF reports its use to Google
    import nncf

    for verbose in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(verbose).setLevel(logging.ERROR)
    layers = [op.get_friendly_name() for op in _layers(ov.Core().read_model(artifact.graph))]
    if not layers:
        raise ExportError("its graph has no convolution and no matrix product, so int8 gains nothing")
    common: dict[str, Any] = {"preset": nncf.QuantizationPreset(_PRESET), "subset_size": len(photos.calibrating)}

    def made(what: str, ignored: tuple[str, ...], control: bool = False) -> _Quantized:
        reporter.step(what)

        def read(item: tuple[int, int]) -> Batch:
            done, index = item
            reporter.phase(f"{what}, photos", done, len(photos.calibrating))
            return photos.found[index][np.newaxis]

        items = [*enumerate(photos.calibrating, 1)]
        dataset = nncf.Dataset(items, read)  # it reads each photo once
        model, scope = ov.Core().read_model(artifact.graph), nncf.IgnoredScope(names=list(ignored))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws progress bars
                if control:
                    labelled = nncf.Dataset([*zip(map(read, items), photos.truths, strict=True)])
                    quantized = nncf.quantize_with_accuracy_control(
                        model, dataset, labelled, _accuracy, max_drop=_LARGEST_DROP, **common
                    )
                else:
                    quantized = nncf.quantize(model, dataset, ignored_scope=scope, **common)
        except Exception as error:  # NNCF's own exceptions have no common base
            raise ExportError(f"NNCF fails: {error}") from error
        path = folder / f"{len(ignored)}-{control}.xml"
        _save(quantized, path)
        kept = tuple(op.get_friendly_name() for op in _layers(quantized) if not _is_quantized(op))
        return _Quantized(path, kept, control, _parity(artifact, path, photos))

    yield made("int8", ())
    if len(layers) > 2:
        yield made("int8 but the first and last layer", (layers[0], layers[-1]))
    if photos.truths:
        yield made("int8 by accuracy", (), control=True)


def _save(model: Any, path: Path) -> None:
    """Write the model with its own precisions. Raises OSError."""
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # such as for a full disk
        raise OSError(f"OpenVINO cannot write the int8 graph: {error}") from error


def _layers(model: Any) -> list[Any]:
    """The convolutions and matrix products of a model in OpenVINO, in execution order."""
    return [op for op in model.get_ordered_ops() if op.get_type_name() in _LAYERS]


def _is_quantized(layer: Any) -> bool:
    """Whether the weights of a layer are stored as integers of 8 bits."""
    node = layer.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_element_type().to_string()) in ("i8", "u8")


def _accuracy(model: Any, labelled: Iterable[tuple[Batch, int]]) -> tuple[float, list[float]]:
    """Top-1 accuracy of a compiled model, and whether each photo is right."""
    right = [float(np.argmax(model(sample)[0][0]) == truth) for sample, truth in labelled]
    return float(np.mean(right)), right


def _open(artifact: Artifact, precision: Precision, graph: Path | None = None) -> Engine:
    """The engine in the default layout; `graph` is an int8 graph that is not in the artifact yet."""
    if graph is None:
        return build_engine(artifact, Runtime.OPENVINO, precision, EngineOptions(cpus=cpu_quota()))
    layout = default_layout(cpu_quota())
    return OpenVinoEngine(
        artifact, precision, slots=layout.slots, threads=layout.threads, max_batch=layout.max_batch, graph=graph
    )


def _parity(artifact: Artifact, graph: Path, photos: _Photos) -> ParityReport:
    sizes = tuple(sorted({at_most(size, artifact) for size in BATCH_SIZES}))
    engine = _open(artifact, Precision.INT8, graph)
    try:
        return compare(
            engine, Precision.INT8, photos.images, photos.reference, batch_sizes=sizes, thresholds=_THRESHOLDS
        )
    finally:
        engine.close()


def _speeds(artifact: Artifact, graph: Path, images: Batch) -> tuple[PrecisionSpeed, ...]:
    """The speed in each precision that may serve here: medians of rounds in turns, with every slot busy."""
    precisions = dict.fromkeys([Precision.F32, choose_precision(artifact, Runtime.OPENVINO, Precision.AUTO)])
    engines = {one: _open(artifact, one) for one in precisions} | {
        Precision.INT8: _open(artifact, Precision.INT8, graph)
    }
    rounds: dict[Precision, list[float]] = {one: [] for one in engines}
    try:
        for engine in engines.values():
            engine.run(images[:1])  # compiles its kernels
        for _ in range(_ROUNDS):
            for one, engine in engines.items():
                rounds[one].append(_rate(engine, images[:1]))
    finally:
        for engine in engines.values():
            engine.close()
    return tuple(PrecisionSpeed(precision=one, images_per_s=round(median(found), 1)) for one, found in rounds.items())


def _rate(engine: Engine, image: Batch) -> float:
    started = monotonic()
    end = started + _ROUND_S

    def work(_: int) -> int:
        count = 0
        while monotonic() < end:
            engine.run(image)
            count += 1
        return count

    with ThreadPoolExecutor(engine.slots) as pool:
        return sum(pool.map(work, range(engine.slots))) / (monotonic() - started)
