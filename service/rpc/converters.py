"""Between the service's types and the messages of the contract, both ways in one place."""

from models.artifact import Manifest, ParityReport, WeightRecord
from models.catalog import InputSpec
from proto.topfive.v1 import classifier_pb2 as pb
from service.model import describe, warnings_of
from service.repository import Entry
from service.types import Classification, EngineInfo, Latency, ModelCard, Prediction, Timing


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
    )


def model_info(entry: Entry) -> pb.ModelInfo:
    """The row of the model list."""
    info = pb.ModelInfo(state=entry.state)
    if entry.loaded is not None:
        info.engine.CopyFrom(_engine(entry.loaded.engine_info))
    if entry.exported is not None:
        version, manifest = entry.exported
        latency = entry.loaded.latency.snapshot() if entry.loaded else Latency(0, None, None, None)
        info.model.CopyFrom(_model(describe(manifest, version, latency)))
        info.year, info.paper, info.classes = manifest.year, manifest.paper, manifest.classes
        info.warnings.extend(warnings_of(manifest))
    elif (architecture := entry.architecture) is not None:
        published = architecture.default_weights
        info.model.CopyFrom(
            pb.Model(
                name=architecture.name,
                family=architecture.family,
                parameters=architecture.parameters,
                macs=architecture.macs,
                input_size=architecture.input.crop,
                acc1=published.acc1 if published else None,
                acc5=published.acc5 if published else None,
            )
        )
        info.year, info.paper, info.classes = architecture.year, architecture.paper, architecture.classes
    return info


def get_model_reply(entry: Entry) -> pb.GetModelReply:
    """The page of one model."""
    manifest: Manifest | None = entry.exported[1] if entry.exported else None
    source = manifest or entry.architecture
    assert source is not None, "a listed model is in the catalog or exported"
    return pb.GetModelReply(
        info=model_info(entry),
        input=_input(source.input),
        weights=_weights(manifest.weights) if manifest else None,
        parity=[_parity(report) for report in manifest.parity] if manifest else [],
    )


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
        latency_ms=pb.Latency(
            count=card.latency_ms.count, p50=card.latency_ms.p50, p90=card.latency_ms.p90, p99=card.latency_ms.p99
        ),
    )


def _engine(engine: EngineInfo) -> pb.Engine:
    return pb.Engine(runtime=engine.runtime, version=engine.version, device=engine.device, precision=engine.precision)


def _timing(timing: Timing) -> pb.Timing:
    return pb.Timing(decode=timing.decode, queue=timing.queue, inference=timing.inference, total=timing.total)


def _input(spec: InputSpec) -> pb.InputSpec:
    return pb.InputSpec(
        resize=spec.resize, crop=spec.crop, interpolation=spec.interpolation, mean=spec.mean, std=spec.std
    )


def _weights(weights: WeightRecord) -> pb.Weights:
    return pb.Weights(source=weights.source, name=weights.name, sha256=weights.sha256 or "")


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
    )
