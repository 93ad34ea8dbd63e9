"""Writes the ONNX file of a network, and checks that the file has the graph contract and nothing else."""

from pathlib import Path

import onnx
import torch
from onnx import TensorProto

from export.common import OPSET, ExportError, strip_metadata
from models.build import ServedNetwork
from models.catalog import InputSpec
from models.weights.onnx_reader import LARGEST_BYTES

# Index arithmetic on shapes, which shows that a dynamic batch was exported badly: a plain CNN needs none.
_UNWANTED = {"Range", "Gather", "Shape", "NonZero", "Loop", "If", "Scan"}


def write_onnx(served: ServedNetwork, spec: InputSpec, classes: int, path: Path) -> None:
    """Export `served` to `path` with a dynamic batch. Raises ExportError if the graph breaks the contract."""
    example = torch.zeros(2, spec.crop, spec.crop, 3, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            served,
            (example,),
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # the exporter fails in many ways on what it does not know
        raise ExportError(f"PyTorch cannot export the network: {error}") from error
    if program is None:
        raise ExportError("torch.onnx.export gave no program")
    model = program.model_proto
    if model.ByteSize() >= LARGEST_BYTES:
        raise ExportError(f"the graph has {model.ByteSize():,} bytes; an ONNX file holds less than 2 GiB")
    strip_metadata(model)
    check(model, spec, classes)
    path.write_bytes(model.SerializeToString(deterministic=True))


def check(model: onnx.ModelProto, spec: InputSpec, classes: int) -> None:
    """Raise ExportError unless `model` is valid ONNX with the graph contract and without index arithmetic."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid ONNX: {error}") from error
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the graph uses opsets {opsets}, not {OPSET} of ONNX alone")
    expected = [
        ("image", TensorProto.UINT8, ["batch", spec.crop, spec.crop, 3]),
        ("probabilities", TensorProto.FLOAT, ["batch", classes]),
    ]
    if (found := [_tensor_type(value) for value in (*model.graph.input, *model.graph.output)]) != expected:
        raise ExportError(f"the graph has {found}, not {expected}")
    if unwanted := sorted({node.op_type for node in model.graph.node} & _UNWANTED):
        raise ExportError(f"the graph computes shapes at run time ({', '.join(unwanted)})")


def _tensor_type(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
