"""Converts protobuf messages to the service's types: the inverse of `service.rpc.converters`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.catalog import InputSpec
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import error_of
from service.common.messages import from_message
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelSummary, WeightsInfo
from service.common.types import Classification
from service.inference.comparison import Comparison, ComparisonRow


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
