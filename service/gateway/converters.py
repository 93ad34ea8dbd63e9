"""Converts protobuf messages to the service's types: the inverse of `service.rpc.converters`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.catalog import InputSpec
from models.labels import Label
from proto.inference import grpc_service_pb2 as v2
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import error_of
from service.common.messages import from_message
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelSummary, WeightsInfo
from service.common.types import Classification, Timing
from service.inference.comparison import Comparison, ComparisonRow
from service.inference.dataplane import Images, Inference
from service.inference.tensors import FILES, IMAGE, PIXELS, PROBABILITIES, pack, unpack

_ALL_CLASSES = (1 << 31) - 1


def classification(reply: pb.ClassifyReply) -> Classification:
    """The answer that the reply carries."""
    return from_message(Classification, reply)


def comparison(reply: pb.CompareReply) -> Comparison:
    """The error of a row gets the class of its code."""
    return from_message(Comparison, reply, rows=tuple(map(_row, reply.rows)))


def model_list(reply: pb.ListModelsReply) -> ModelList:
    """The rows of all models."""
    return ModelList(reply.default_model, tuple(from_message(ModelSummary, row) for row in reply.models))


def model_detail(reply: pb.GetModelReply) -> ModelDetail:
    """The page of one model."""
    weights_file = from_message(WeightsInfo, reply.weights) if reply.HasField("weights") else None
    known = from_message(ModelDetail, reply, weights=reply.info.model.weights or None, weights_file=weights_file)
    published = tuple(replace(weights, input=as_written(weights.input)) for weights in known.published)
    return replace(known, input=as_written(known.input), published=published)


def model_layers(reply: pb.GetLayersReply) -> ModelLayers:
    """The layers of one model."""
    return from_message(ModelLayers, reply)


def infer_request(images: Images, model: str, version: int | None, identity: str = "") -> v2.ModelInferRequest:
    """The request for the probabilities of these images."""
    if isinstance(images, np.ndarray):
        datatype, shape, content = PIXELS, images.shape, images.tobytes()
    else:
        datatype, shape, content = FILES, (len(images),), pack(images)
    return v2.ModelInferRequest(
        model_name=model,
        model_version="" if version is None else str(version),
        id=identity,
        inputs=[v2.ModelInferRequest.InferInputTensor(name=IMAGE, datatype=datatype, shape=shape)],
        raw_input_contents=[content],
    )


def labels_request(images: Images, model: str, version: str) -> v2.ModelInferRequest:
    """The request for the names of all classes of that version: they come only with the answer to an image."""
    request = infer_request(images, model, int(version))
    request.outputs.add(name=PROBABILITIES).parameters["classification"].int64_param = _ALL_CLASSES
    return request


def labels(reply: v2.ModelInferResponse) -> tuple[Label, ...]:
    """The classes of the model by their index. Their WordNet ids are not known."""
    strings = (one.decode().split(":", 2) for one in unpack(reply.raw_output_contents[0]))
    return tuple(Label(index, "", label) for index, label in sorted((int(index), label) for _, index, label in strings))


def inference(reply: v2.ModelInferResponse, labels: Sequence[Label], timing_ms: Timing) -> Inference:
    """The probabilities that the reply carries."""
    flat = np.frombuffer(reply.raw_output_contents[0], "<f4").astype(np.float32)
    probabilities = flat.reshape(tuple(reply.outputs[0].shape))
    return Inference(probabilities, labels, reply.model_name, int(reply.model_version), timing_ms)


def _row(row: pb.CompareRow) -> ComparisonRow:
    if row.HasField("error"):
        return ComparisonRow(row.model, error_of(row.error.code, row.error.detail))
    return ComparisonRow(row.model, classification(row.answer))


def as_written(spec: InputSpec) -> InputSpec:
    """The input spec with the decimals that it had before it was sent as 32-bit floats."""
    return replace(spec, mean=_decimals(spec.mean), std=_decimals(spec.std))


def _decimals(values: Sequence[float]) -> tuple[float, float, float]:
    """The shortest decimals that round to these 32-bit floats."""
    first, second, third = (float(str(np.float32(value))) for value in values)
    return first, second, third
