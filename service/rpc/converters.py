"""Converts the service's types to protobuf messages. Fields whose names differ there are listed here."""

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.messages import to_message
from service.common.model_info import ModelDetail, ModelLayers, ModelList
from service.common.types import Classification
from service.inference.comparison import Comparison, ComparisonRow
from service.rpc.errors import describe


def classify_reply(request_id: str, answer: Classification) -> pb.ClassifyReply:
    """The reply to one image."""
    return to_message(pb.ClassifyReply, answer, request_id=request_id)


def compare_reply(request_id: str, comparison: Comparison) -> pb.CompareReply:
    """If a row has an unexpected error, its cause is only logged."""
    rows = [_row(row, request_id) for row in comparison.rows]
    return to_message(pb.CompareReply, comparison, request_id=request_id, rows=rows)


def list_models_reply(known: ModelList) -> pb.ListModelsReply:
    """The rows of all models."""
    models = [to_message(pb.ModelInfo, row) for row in known.models]
    return pb.ListModelsReply(default_model=known.default, models=models)


def get_model_reply(known: ModelDetail) -> pb.GetModelReply:
    """The page of one model."""
    weights = known.weights_file and to_message(pb.Weights, known.weights_file)
    return to_message(pb.GetModelReply, known, weights=weights)


def get_layers_reply(known: ModelLayers) -> pb.GetLayersReply:
    """The layers of one model."""
    return to_message(pb.GetLayersReply, known)


def _row(row: ComparisonRow, request_id: str) -> pb.CompareRow:
    if isinstance(row.result, Exception):
        return pb.CompareRow(model=row.model, error=describe(row.result, request_id))
    return pb.CompareRow(model=row.model, answer=to_message(pb.ClassifyReply, row.result))
