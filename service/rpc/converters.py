"""Between the service's types and the messages of the contract, both ways in one place."""

from dataclasses import asdict

from models.analysis.layer_table import Layer, Stage
from models.artifact.artifact import ParityReport, WeightRecord
from models.artifact.measured import MeasuredAccuracy
from models.catalog import InputSpec, WeightSet
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.model_info import BuiltEngine, ModelDetail, ModelLayers, ModelSummary
from service.common.types import Classification, EngineInfo, Latency, ModelCard, Prediction, Preprocessing, Timing
from service.inference.comparison import Comparison, Row
from service.rpc.errors import describe


def classify_reply(request_id: str, answer: Classification) -> pb.ClassifyReply:
    """The reply for an answer of the classifier."""
    return pb.ClassifyReply(
        request_id=request_id,
        predictions=[_prediction(prediction) for prediction in answer.predictions],
        model=_model(answer.model),
        engine=_engine(answer.engine),
        timing_ms=_timing(answer.timing_ms),
        batch_size=answer.batch_size,
        warnings=answer.warnings,
        members=[_model(card) for card in answer.members],
        preprocessing=_preprocessing(answer.preprocessing),
    )


def compare_reply(request_id: str, comparison: Comparison) -> pb.CompareReply:
    """The reply for a comparison; the log gets what rows with an unexpected error do not tell."""
    return pb.CompareReply(
        request_id=request_id,
        rows=[_row(row, request_id) for row in comparison.rows],
        agreement=[pb.Agreement(wnid=same.wnid, label=same.label, models=same.models) for same in comparison.agreement],
        common=[pb.ClassName(wnid=name.wnid, label=name.label) for name in comparison.common],
        timing_ms=pb.CompareTiming(decode=comparison.timing_ms.decode, total=comparison.timing_ms.total),
        warnings=comparison.warnings,
    )


def model_info(facts: ModelSummary) -> pb.ModelInfo:
    """The row of the model list."""
    return pb.ModelInfo(
        model=pb.Model(
            name=facts.name,
            version=facts.version or 0,
            family=facts.family,
            parameters=facts.parameters,
            macs=facts.macs,
            input_size=facts.input_size,
            weights=facts.weights or "",
            acc1=facts.acc1,
            acc5=facts.acc5,
            acc_dataset=facts.acc_dataset,
            latency_ms=_latency(facts.latency_ms) if facts.latency_ms else None,
        ),
        state=facts.state,
        year=facts.year,
        paper=facts.paper,
        classes=facts.classes,
        engine=_engine(facts.engine) if facts.engine else None,
        warnings=facts.warnings,
        parameters_train=facts.parameters_train,
        measured=[_measurement(measurement) for measurement in facts.measured],
        passed_over=facts.passed_over,
        layout=pb.Layout(**asdict(facts.layout)) if facts.layout else None,
    )


def get_model_reply(facts: ModelDetail) -> pb.GetModelReply:
    """The page of one model."""
    return pb.GetModelReply(
        info=model_info(facts),
        input=_input(facts.input),
        weights=_weights(facts.record) if facts.record else None,
        parity=[_parity(report) for report in facts.parity],
        published=[_weight_set(weights) for weights in facts.published],
        published_errors=[
            pb.PublishedErrors(protocol=errors.protocol, top1=errors.top1, top5=errors.top5)
            for errors in facts.published_errors
        ],
        published_macs=facts.published_macs,
        depth=facts.depth,
        configuration=facts.configuration,
        ilsvrc=facts.ilsvrc,
        note=facts.note,
        engines=[_built(engine) for engine in facts.engines],
    )


def get_layers_reply(facts: ModelLayers) -> pb.GetLayersReply:
    """The layers of one model."""
    table = facts.table
    return pb.GetLayersReply(
        model=facts.name,
        version=facts.version or 0,
        input_shape=table.input,
        layers=[_layer(layer, table.share(layer.macs)) for layer in table.layers],
        stages=[_stage(stage, table.share(stage.macs)) for stage in table.stages],
        parameters=table.cost.parameters,
        macs=table.cost.macs,
    )


def _layer(layer: Layer, share: float) -> pb.Layer:
    return pb.Layer(
        name=layer.name,
        kind=layer.kind,
        stage=layer.stage,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        input=layer.input,
        output=layer.output,
        parameters=layer.parameters,
        macs=layer.macs,
        share=share,
        receptive_field=layer.receptive_field,
    )


def _stage(stage: Stage, share: float) -> pb.Stage:
    return pb.Stage(
        name=stage.name,
        layers=stage.layers,
        output=stage.output,
        parameters=stage.parameters,
        macs=stage.macs,
        share=share,
        receptive_field=stage.receptive_field,
    )


def _row(row: Row, request_id: str) -> pb.CompareRow:
    if isinstance(row.result, Exception):
        return pb.CompareRow(model=row.model, error=describe(row.result, request_id))
    return pb.CompareRow(model=row.model, answer=classify_reply("", row.result))


def _prediction(prediction: Prediction) -> pb.Prediction:
    return pb.Prediction(
        rank=prediction.rank,
        class_id=prediction.class_id,
        wnid=prediction.wnid,
        label=prediction.label,
        probability=prediction.probability,
    )


def _model(card: ModelCard) -> pb.Model:
    return pb.Model(
        name=card.name,
        version=card.version,
        family=card.family,
        parameters=card.parameters,
        macs=card.macs,
        input_size=card.input_size,
        weights=card.weights,
        acc1=card.acc1,
        acc5=card.acc5,
        acc_dataset=card.acc_dataset,
        latency_ms=_latency(card.latency_ms),
    )


def _latency(latency: Latency) -> pb.Latency:
    return pb.Latency(count=latency.count, p50=latency.p50, p90=latency.p90, p99=latency.p99)


def _engine(engine: EngineInfo) -> pb.Engine:
    return pb.Engine(runtime=engine.runtime, version=engine.version, device=engine.device, precision=engine.precision)


def _built(engine: BuiltEngine) -> pb.BuiltEngine:
    return pb.BuiltEngine(**asdict(engine))


def _timing(timing: Timing) -> pb.Timing:
    return pb.Timing(decode=timing.decode, queue=timing.queue, inference=timing.inference, total=timing.total)


def _preprocessing(done: Preprocessing) -> pb.Preprocessing:
    return pb.Preprocessing(decoder=done.decoder, scale=done.scale, recipe=done.recipe)


def _input(spec: InputSpec) -> pb.InputSpec:
    return pb.InputSpec(
        resize=spec.resize,
        crop=spec.crop,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        channels=spec.channels,
    )


def _weights(weights: WeightRecord) -> pb.Weights:
    return pb.Weights(source=weights.source, name=weights.name, sha256=weights.sha256 or "")


def _weight_set(weights: WeightSet) -> pb.WeightSet:
    return pb.WeightSet(
        tag=weights.tag,
        acc1=weights.acc1,
        acc5=weights.acc5,
        input=_input(weights.input),
        dataset=weights.dataset,
    )


def _measurement(measurement: MeasuredAccuracy) -> pb.Measurement:
    return pb.Measurement(**measurement.model_dump())


def _parity(report: ParityReport) -> pb.Parity:
    return pb.Parity(
        runtime=report.runtime,
        runtime_version=report.runtime_version,
        precision=report.precision,
        device=report.device,
        images=report.images,
        max_abs_diff=report.max_abs_diff,
        logit_cosine=report.logit_cosine,
        top1_agreement=report.top1_agreement,
        top5_agreement=report.top5_agreement,
        passed=report.passed,
        batch_sizes=report.batch_sizes,
        thresholds=pb.Thresholds(**report.thresholds.model_dump()),
    )
