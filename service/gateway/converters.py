"""Messages of the contract as the service's types: the inverse of `service.rpc.converters`, field by field."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.analysis.cost import Size
from models.analysis.layer_table import Layer, LayerTable, Stage
from models.artifact.artifact import ParityReport, Thresholds, WeightRecord, WeightSource
from models.artifact.measured import MeasuredAccuracy
from models.catalog import Channels, InputSpec, Interpolation, PublishedErrors, WeightSet
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import error_of
from service.common.model_info import BuiltEngine, ModelDetail, ModelLayers, ModelState, ModelSummary
from service.common.types import (
    Classification,
    EngineInfo,
    Latency,
    Layout,
    ModelCard,
    Prediction,
    Preprocessing,
    Timing,
)
from service.inference.comparison import Agreement, ClassName, Comparison, ComparisonTiming, Row


def classification(reply: pb.ClassifyReply) -> Classification:
    """The answer that the reply carries."""
    return Classification(
        predictions=tuple(
            Prediction(one.rank, one.class_id, one.wnid, one.label, one.probability) for one in reply.predictions
        ),
        model=_card(reply.model),
        engine=_engine(reply.engine),
        preprocessing=Preprocessing(reply.preprocessing.decoder, reply.preprocessing.scale, reply.preprocessing.recipe),
        timing_ms=Timing(
            reply.timing_ms.decode, reply.timing_ms.queue, reply.timing_ms.inference, reply.timing_ms.total
        ),
        batch_size=reply.batch_size,
        warnings=tuple(reply.warnings),
        members=tuple(_card(card) for card in reply.members),
    )


def comparison(reply: pb.CompareReply) -> Comparison:
    """The comparison that the reply carries; a row's error has the class that its code names."""
    return Comparison(
        rows=tuple(_row(row) for row in reply.rows),
        agreement=tuple(Agreement(same.wnid, same.label, tuple(same.models)) for same in reply.agreement),
        common=tuple(ClassName(name.wnid, name.label) for name in reply.common),
        timing_ms=ComparisonTiming(reply.timing_ms.decode, reply.timing_ms.total),
        warnings=tuple(reply.warnings),
    )


def model_summary(info: pb.ModelInfo) -> ModelSummary:
    """The row of the model list."""
    return ModelSummary(**_summary_fields(info))


def model_detail(reply: pb.GetModelReply) -> ModelDetail:
    """The page of one model. No reply has the seed of its weights or the files of published ones."""
    return ModelDetail(
        **_summary_fields(reply.info),
        input=_input(reply.input),
        record=_record(reply.weights) if reply.HasField("weights") else None,
        parity=tuple(_parity(report) for report in reply.parity),
        published=tuple(
            WeightSet(one.tag, one.acc1, one.acc5, _input(one.input), one.dataset) for one in reply.published
        ),
        published_errors=tuple(
            PublishedErrors(one.protocol, _optional(one, "top1"), _optional(one, "top5"))
            for one in reply.published_errors
        ),
        published_macs=_optional(reply, "published_macs"),
        depth=_optional(reply, "depth"),
        configuration=_optional(reply, "configuration"),
        ilsvrc=_optional(reply, "ilsvrc"),
        note=_optional(reply, "note"),
        engines=tuple(_built(engine) for engine in reply.engines),
    )


def model_layers(reply: pb.GetLayersReply) -> ModelLayers:
    """The layers of one model; shares and totals follow from the rows."""
    channels, height, width = reply.input_shape
    layers = tuple(_layer(layer) for layer in reply.layers)
    stages = tuple(_stage(stage) for stage in reply.stages)
    return ModelLayers(reply.model, reply.version or None, LayerTable((channels, height, width), layers, stages))


def _optional(message: Any, field: str) -> Any:
    """The field's value, None where it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def _row(row: pb.CompareRow) -> Row:
    if row.HasField("error"):
        return Row(row.model, error_of(row.error.code, row.error.detail))
    return Row(row.model, classification(row.answer))


def _card(model: pb.Model) -> ModelCard:
    return ModelCard(
        name=model.name,
        version=model.version,
        family=model.family,
        parameters=model.parameters,
        macs=model.macs,
        input_size=model.input_size,
        weights=model.weights,
        acc1=_optional(model, "acc1"),
        acc5=_optional(model, "acc5"),
        acc_dataset=_optional(model, "acc_dataset"),
        latency_ms=_latency(model.latency_ms),
    )


def _summary_fields(info: pb.ModelInfo) -> dict[str, Any]:
    model = info.model
    return {
        "name": model.name,
        "state": ModelState(info.state),
        "family": model.family,
        "year": _optional(info, "year"),
        "paper": info.paper,
        "parameters": model.parameters,
        "parameters_train": info.parameters_train,
        "macs": model.macs,
        "input_size": model.input_size,
        "classes": info.classes,
        "acc1": _optional(model, "acc1"),
        "acc5": _optional(model, "acc5"),
        "acc_dataset": _optional(model, "acc_dataset"),
        "measured": tuple(_measurement(one) for one in info.measured),
        "version": model.version or None,
        "weights": model.weights or None,
        "engine": _engine(info.engine) if info.HasField("engine") else None,
        "latency_ms": _latency(model.latency_ms) if model.HasField("latency_ms") else None,
        "warnings": tuple(info.warnings),
        "passed_over": tuple(info.passed_over),
        "layout": _layout(info.layout) if info.HasField("layout") else None,
    }


def _layout(layout: pb.Layout) -> Layout:
    return Layout(layout.slots, layout.threads, layout.max_batch, layout.origin)


def _built(engine: pb.BuiltEngine) -> BuiltEngine:
    return BuiltEngine(
        name=engine.name,
        runtime=engine.runtime,
        version=engine.version,
        targets=tuple(engine.targets),
        precision=engine.precision,
        card=_optional(engine, "card"),
        smallest=engine.smallest,
        largest=engine.largest,
        size_bytes=engine.size_bytes,
        fits=engine.fits,
        reason=engine.reason,
        remedy=engine.remedy,
    )


def _measurement(one: pb.Measurement) -> MeasuredAccuracy:
    return MeasuredAccuracy(
        **{
            field.name: getattr(one, field.name)
            if not field.has_presence or one.HasField(field.name)  # type: ignore[arg-type]
            else None
            for field in pb.Measurement.DESCRIPTOR.fields
        }
    )


def _latency(latency: pb.Latency) -> Latency:
    return Latency(latency.count, _optional(latency, "p50"), _optional(latency, "p90"), _optional(latency, "p99"))


def _engine(engine: pb.Engine) -> EngineInfo:
    return EngineInfo(engine.runtime, engine.version, engine.device, engine.precision)


def _input(spec: pb.InputSpec) -> InputSpec:
    return InputSpec(
        resize=spec.resize,
        crop=spec.crop,
        interpolation=Interpolation(spec.interpolation),
        mean=_decimals(spec.mean),
        std=_decimals(spec.std),
        channels=Channels(spec.channels),
    )


def _decimals(values: Sequence[float]) -> tuple[float, float, float]:
    """The numbers as they were written before 32 bits held them: the shortest decimals that round to these."""
    first, second, third = (float(str(np.float32(value))) for value in values)
    return first, second, third


def _record(weights: pb.Weights) -> WeightRecord:
    return WeightRecord(source=WeightSource(weights.source), name=weights.name, sha256=weights.sha256 or None)


def _parity(report: pb.Parity) -> ParityReport:
    limits = report.thresholds
    return ParityReport(
        runtime=report.runtime,
        runtime_version=report.runtime_version,
        precision=report.precision,
        device=report.device,
        images=report.images,
        batch_sizes=tuple(report.batch_sizes),
        max_abs_diff=report.max_abs_diff,
        logit_cosine=report.logit_cosine,
        top1_agreement=report.top1_agreement,
        top5_agreement=report.top5_agreement,
        thresholds=Thresholds(
            max_abs_diff=limits.max_abs_diff,
            logit_cosine=limits.logit_cosine,
            top1_agreement=limits.top1_agreement,
            top5_agreement=limits.top5_agreement,
        ),
        passed=report.passed,
    )


def _layer(layer: pb.Layer) -> Layer:
    return Layer(
        name=layer.name,
        kind=layer.kind,
        stage=layer.stage,
        input=tuple(layer.input),
        output=tuple(layer.output),
        parameters=layer.parameters,
        macs=layer.macs,
        receptive_field=_size(layer.receptive_field),
        kernel=_size(layer.kernel),
        stride=_size(layer.stride),
        padding=_size(layer.padding),
        groups=_optional(layer, "groups"),
    )


def _stage(stage: pb.Stage) -> Stage:
    return Stage(
        name=stage.name,
        layers=stage.layers,
        output=tuple(stage.output),
        parameters=stage.parameters,
        macs=stage.macs,
        receptive_field=_size(stage.receptive_field),
    )


def _size(values: Sequence[int]) -> Size | None:
    """Height and width; None where there are none."""
    if not values:
        return None
    height, width = values
    return height, width
