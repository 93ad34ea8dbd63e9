"""What single nodes of an ONNX graph do to a map: kind, kernel, multiply-accumulates. It follows no edges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from onnx import TensorProto

from export.importing.shape_tracing import Step, Trail, map_size, spatial
from export.importing.signature import Layout
from models.analysis.cost import Size
from models.analysis.layer_table import Kind

_ONE: Size = (1, 1)
_FRACTIONS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

# Which inputs of a node are learned; of a batch norm the statistics are not.
LEARNED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Conv": (1, 2),
        "ConvTranspose": (1, 2),
        "ConvInteger": (1,),
        "QLinearConv": (3, 8),
        "Gemm": (1, 2),
        "QGemm": (3, 6),
        "MatMul": (0, 1),
        "MatMulInteger": (0, 1),
        "QLinearMatMul": (0, 3),
        "BatchNormalization": (1, 2),
        "InstanceNormalization": (1, 2),
        "LayerNormalization": (1, 2),
        "GroupNormalization": (1, 2),
        "PRelu": (1,),
        "Add": (0, 1),
        "Mul": (0, 1),
    }
)


@dataclass(frozen=True, slots=True)
class Operator:
    """One node at work. `reach` is the kernel by which the receptive field grows, its dilation included, None where
    that is not known; `whole` that it leaves one value of each channel's map.
    """

    kind: str
    macs: int = 0
    kernel: Size | None = None
    stride: Size | None = None
    padding: Size | None = None
    groups: int | None = None
    reach: Size | None = _ONE
    step: Size = _ONE
    whole: bool = False


def _pair(values: tuple[int, ...] | None, default: Size = _ONE) -> Size:
    return (values[0], values[1]) if values else default


def _spread(kernel: Size, dilation: Size) -> Size:
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1


def _padding(step: Step, reach: Size, stride: Size) -> Size | None:
    """Of both sides; None where they differ. The automatic ones are as many as the output needs."""
    automatic = step.text("auto_pad")
    if automatic == "VALID":
        return 0, 0
    if automatic.startswith("SAME"):
        ends = zip(step.shape(0)[2:], step.output[2:], reach, stride, strict=True)
        added = [max((after - 1) * move + wide - before, 0) for before, after, wide, move in ends]
        return (added[0] // 2, added[1] // 2) if not any(one % 2 for one in added) else None
    top, left, bottom, right = step.numbers("pads") or (0, 0, 0, 0)
    return (top, left) if (top, left) == (bottom, right) else None


def _convolution(step: Step, trail: Trail) -> Operator:
    weight, groups = step.shape(LEARNED[step.node.op_type][0]), step.attribute("group", 1)
    macs = prod(weight[1:]) * prod(step.output) // step.batch
    kind = Kind.DEPTHWISE if groups == weight[1] * groups > 1 else Kind.CONVOLUTION
    if len(weight) != 4:
        return Operator(kind, macs, groups=groups, reach=None)
    kernel, stride = (weight[2], weight[3]), _pair(step.numbers("strides"))
    reach = _spread(kernel, _pair(step.numbers("dilations")))
    padding = _padding(step, reach, stride)
    seen = reach if trail.layout is Layout.NCHW else None
    return Operator(kind, macs, kernel, stride, padding, groups, reach=seen, step=stride)


def _transposed(step: Step, _trail: Trail) -> Operator:
    weight, groups = step.shape(1), step.attribute("group", 1)
    macs = prod(weight[1:]) * prod(step.shape(0)) // step.batch
    if len(weight) != 4:
        return Operator(Kind.TRANSPOSED, macs, groups=groups, reach=None)
    pads = step.numbers("pads") or (0, 0, 0, 0)
    even = not step.text("auto_pad") and pads[:2] == pads[2:]
    return Operator(
        Kind.TRANSPOSED,
        macs,
        (weight[2], weight[3]),
        _pair(step.numbers("strides")),
        (pads[0], pads[1]) if even else None,
        groups,
        reach=None,
    )


def _product(step: Step, trail: Trail) -> Operator:
    """Each output adds up one row of the left factor. A row that is a whole image sees its whole map, one that is
    the channels of a place sees that place; of any other row it is not known.
    """
    name = step.node.op_type
    left = step.shape(0)
    added = left[0] if step.attribute("transA", 0) else left[-1]
    macs = prod(step.output) * added // step.batch
    names = [step.node.input[place] for place in (0, 3 if name.startswith("Q") else 1)]
    kind = Kind.FULLY_CONNECTED if any(one in step.stored for one in names) else Kind.MATRIX_PRODUCT
    if kind is Kind.MATRIX_PRODUCT or names[0] in step.stored or step.attribute("transA", 0):
        return Operator(kind, macs, reach=None)
    if len(left) == 2 and left[0] == step.batch:
        return Operator(kind, macs, reach=trail.extent, whole=True)
    per_place = len(left) == 4 and trail.layout is Layout.NHWC
    return Operator(kind, macs, reach=_ONE if per_place else None)


def _pooling(kind: Kind, whole: Kind) -> Callable[[Step, Trail], Operator | None]:
    def operator(step: Step, trail: Trail) -> Operator | None:
        sides = step.numbers("kernel_shape") or ()
        strides = step.numbers("strides") or (1,) * len(sides)
        if set(sides[-2:]) == set(strides[-2:]) == {1}:  # along other axes, as inside a local response norm
            return None
        if len(sides) != 2:
            return Operator(kind, reach=None)
        kernel, stride = _pair(sides), _pair(strides)
        reach = _spread(kernel, _pair(step.numbers("dilations")))
        padding = _padding(step, reach, stride)
        known = trail.layout is Layout.NCHW
        if known and kernel == trail.extent and step.output[2:] == _ONE and padding == (0, 0):
            return Operator(whole, kernel=kernel, reach=kernel, whole=True)
        return Operator(kind, 0, kernel, stride, padding, reach=reach if known else None, step=stride)

    return operator


def _global(kind: Kind) -> Callable[[Step, Trail], Operator]:
    def operator(step: Step, trail: Trail) -> Operator:
        last = step.attribute("channels_last", 0)  # of quantised ones
        size = map_size(step.shape(0), Layout.NHWC if last else Layout.NCHW)
        return Operator(kind, kernel=size, reach=size if trail.layout else None, whole=True)

    return operator


def _reduction(kind: Kind) -> Callable[[Step, Trail], Operator | None]:
    """A mean or maximum over the whole map; over other axes it is no pooling."""

    def operator(step: Step, trail: Trail) -> Operator | None:
        axes, shape = step.numbers("axes", 1), step.shape(0)
        if not axes or not spatial(axes, len(shape), trail.layout):
            return None
        size = map_size(shape, trail.layout)
        return Operator(kind, kernel=size, reach=size, whole=True)

    return operator


def _plain(kind: str) -> Callable[[Step, Trail], Operator]:
    return lambda _step, _trail: Operator(kind)


def _learned(kind: str) -> Callable[[Step, Trail], Operator | None]:
    """A sum or product with values that are stored, unless it is a single number or one that is no fraction."""
    return lambda step, _trail: Operator(kind) if learned_values(step) else None


def learned_values(step: Step) -> list[str]:
    """The names of the stored values that a node learned."""
    names = [step.node.input[place] for place in LEARNED.get(step.node.op_type, ()) if place < len(step.node.input)]
    found = [name for name in names if name in step.stored]
    if step.node.op_type in ("Add", "Mul"):
        tensors = {name: step.stored[name] for name in found}
        found = [name for name in found if prod(tensors[name].dims) > 1 and tensors[name].data_type in _FRACTIONS]
    return found


_AVERAGE = (Kind.AVERAGE_POOLING, Kind.GLOBAL_AVERAGE_POOLING)
_MAX = (Kind.MAX_POOLING, Kind.GLOBAL_MAX_POOLING)
OPERATORS: Mapping[str, Callable[[Step, Trail], Operator | None]] = MappingProxyType(
    {
        "Conv": _convolution,
        "ConvInteger": _convolution,
        "QLinearConv": _convolution,
        "ConvTranspose": _transposed,
        "Gemm": _product,
        "QGemm": _product,
        "MatMul": _product,
        "MatMulInteger": _product,
        "QLinearMatMul": _product,
        "MaxPool": _pooling(*_MAX),
        "AveragePool": _pooling(*_AVERAGE),
        "QLinearAveragePool": _pooling(*_AVERAGE),
        "GlobalAveragePool": _global(Kind.GLOBAL_AVERAGE_POOLING),
        "QLinearGlobalAveragePool": _global(Kind.GLOBAL_AVERAGE_POOLING),
        "GlobalMaxPool": _global(Kind.GLOBAL_MAX_POOLING),
        "ReduceMean": _reduction(Kind.GLOBAL_AVERAGE_POOLING),
        "ReduceMax": _reduction(Kind.GLOBAL_MAX_POOLING),
        "BatchNormalization": _plain(Kind.BATCH_NORM),
        "InstanceNormalization": _plain(Kind.INSTANCE_NORM),
        "LayerNormalization": _plain(Kind.LAYER_NORM),
        "GroupNormalization": _plain(Kind.GROUP_NORM),
        "LRN": _plain(Kind.LOCAL_RESPONSE_NORM),
        "PRelu": _plain("PReLU"),
        "Add": _learned("bias"),
        "Mul": _learned("scale"),
    }
)
"""By the node's operator: what it does there, or None where it is no layer. Those not named here are none."""
