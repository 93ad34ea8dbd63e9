"""What single operators of PyTorch do to a map: kind, kernel, multiply-accumulates. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor

from models.analysis.cost import Size, convolution_macs
from models.analysis.layer_table import Kind

_ONE: Size = (1, 1)
_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator at work. `reach` is the kernel by which the receptive field grows, in values of the operator's
    input, its dilation included; `whole` that it leaves one value of each channel's map.
    """

    kind: Kind
    macs: int = 0
    kernel: Size | None = None
    stride: Size | None = None
    padding: Size | None = None
    groups: int | None = None
    reach: Size = _ONE
    step: Size = _ONE
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One run of an operator. `extent` is the map that its input spans, also where that is flattened by now."""

    arguments: Sequence[object]
    output: Tensor
    extent: Size

    def tensor(self, place: int) -> Tensor:
        """That argument, which must be a tensor."""
        value = self.arguments[place]
        assert isinstance(value, Tensor)
        return value

    def pair(self, place: int, default: Size) -> Size:
        """The last two numbers of that argument, height and width; `default` where it is left out or empty."""
        value = self.arguments[place] if place < len(self.arguments) else ()
        numbers = [value] if isinstance(value, int) else value
        assert isinstance(numbers, Sequence)
        if not numbers:
            return default
        return int(numbers[-2] if len(numbers) > 1 else numbers[0]), int(numbers[-1])


def _convolution(call: Call) -> Operation:
    if call.arguments[6]:
        raise ValueError("the cost of a transposed convolution is not defined here")
    inputs, weight, groups = call.tensor(0).shape[1], call.tensor(1), call.arguments[8]
    assert isinstance(groups, int)
    high, wide = weight.shape[2:]
    channels, height, width = call.output.shape[1:]
    stride, padding, (down, right) = call.pair(3, _ONE), call.pair(4, (0, 0)), call.pair(5, _ONE)
    return Operation(
        Kind.DEPTHWISE if groups == inputs > 1 else Kind.CONVOLUTION,
        convolution_macs((channels, height, width), (high, wide), inputs, groups),
        (high, wide),
        stride,
        padding,
        groups,
        reach=((high - 1) * down + 1, (wide - 1) * right + 1),
        step=stride,
    )


def _product(kind: Kind, left: int) -> Callable[[Call], Operation]:
    """A matrix product whose left factor is argument `left`: each output adds up one whole row of it."""

    def operation(call: Call) -> Operation:
        macs = prod(call.output.shape) * call.tensor(left).shape[-1]
        return Operation(kind, macs, reach=call.extent, whole=True)

    return operation


def _pooling(kind: Kind, whole: Kind) -> Callable[[Call], Operation | None]:
    def operation(call: Call) -> Operation | None:
        kernel = call.pair(1, _ONE)
        stride, padding = call.pair(2, kernel), call.pair(3, (0, 0))
        if kernel == call.extent and call.output.shape[-2:] == _ONE and padding == (0, 0):
            return Operation(whole, 0, kernel, reach=kernel, whole=True)
        if kernel == stride == _ONE:  # along other axes, as inside a local response norm
            return None
        return Operation(kind, 0, kernel, stride, padding, reach=kernel, step=stride)

    return operation


def _adaptive(kind: Kind, whole: Kind) -> Callable[[Call], Operation | None]:
    """Pooling to a given size; where the map has that size it does nothing. Windows that differ count as the largest
    that a fixed stride would need: N - (M - 1) * (N // M) from N values to M.
    """

    def operation(call: Call) -> Operation | None:
        (high, wide), (rows, columns) = call.extent, call.output.shape[-2:]
        if (rows, columns) == call.extent:
            return None
        if (rows, columns) == _ONE:
            return Operation(whole, 0, call.extent, reach=call.extent, whole=True)
        stride = (high // rows, wide // columns)
        kernel = (high - (rows - 1) * stride[0], wide - (columns - 1) * stride[1])
        return Operation(kind, 0, kernel, stride, (0, 0), reach=kernel, step=stride)

    return operation


def _reduction(kind: Kind) -> Callable[[Call], Operation | None]:
    """A mean or maximum over the whole map; over other axes it is no pooling."""

    def operation(call: Call) -> Operation | None:
        source = call.tensor(0)
        axes = call.arguments[1] if len(call.arguments) > 1 else None
        if source.ndim != 4 or not isinstance(axes, Sequence) or {axis % 4 for axis in axes} != {2, 3}:
            return None
        return Operation(kind, 0, call.extent, reach=call.extent, whole=True)

    return operation


def _plain(kind: Kind) -> Callable[[Call], Operation]:
    return lambda _call: Operation(kind)


_AVERAGE = (Kind.AVERAGE_POOLING, Kind.GLOBAL_AVERAGE_POOLING)
_MAX = (Kind.MAX_POOLING, Kind.GLOBAL_MAX_POOLING)
_OPERATIONS: Mapping[object, Callable[[Call], Operation | None]] = MappingProxyType(
    {
        _aten.convolution: _convolution,
        _aten.addmm: _product(Kind.FULLY_CONNECTED, 1),
        _aten.mm: _product(Kind.FULLY_CONNECTED, 0),
        _aten.bmm: _product(Kind.MATRIX_PRODUCT, 0),
        _aten.baddbmm: _product(Kind.MATRIX_PRODUCT, 1),
        _aten.max_pool2d_with_indices: _pooling(*_MAX),
        _aten.avg_pool2d: _pooling(*_AVERAGE),
        _aten.avg_pool3d: _pooling(*_AVERAGE),
        _aten._adaptive_avg_pool2d: _adaptive(*_AVERAGE),
        _aten.adaptive_max_pool2d: _adaptive(*_MAX),
        _aten.mean: _reduction(Kind.GLOBAL_AVERAGE_POOLING),
        _aten.amax: _reduction(Kind.GLOBAL_MAX_POOLING),
        _aten.native_batch_norm: _plain(Kind.BATCH_NORM),
        _aten._native_batch_norm_legit_no_training: _plain(Kind.BATCH_NORM),
        _aten.native_group_norm: _plain(Kind.GROUP_NORM),
        _aten.native_layer_norm: _plain(Kind.LAYER_NORM),
    }
)


def operation_of(operator: object, call: Call) -> Operation | None:
    """What the operator does there, or None where it leaves the map as it is (activations, sums, reshapes).

    Raises ValueError for a transposed convolution, whose cost is not defined here.
    """
    known = _OPERATIONS.get(operator)
    return known(call) if known else None
