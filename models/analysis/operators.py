"""Describes single PyTorch operators: kind, kernel, multiply-accumulates. Imports torch."""

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
    """The effect of one operator. `reach` is the dilated kernel size and `step` the stride, both (height, width).

    The receptive field grows by (reach - 1) * jump. `whole_map`: each output value depends on the whole feature map
    (global pooling, fully connected layer, matrix product).
    """

    kind: Kind
    macs: int = 0
    kernel: Size | None = None
    stride: Size | None = None
    padding: Size | None = None
    groups: int | None = None
    reach: Size = _ONE
    step: Size = _ONE
    whole_map: bool = False


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One run of an operator. `extent` is the (height, width) that its input spans, also if that is flattened."""

    arguments: Sequence[object]
    output: Tensor
    extent: Size

    def tensor(self, place: int) -> Tensor:
        value = self.arguments[place]
        assert isinstance(value, Tensor)
        return value

    def pair(self, place: int, default: Size) -> Size:
        """The last two numbers of that argument as height and width; `default` if it is left out or empty."""
        value = self.arguments[place] if place < len(self.arguments) else ()
        numbers = [value] if isinstance(value, int) else value
        assert isinstance(numbers, Sequence)
        if not numbers:
            return default
        return int(numbers[-2] if len(numbers) > 1 else numbers[0]), int(numbers[-1])


def _convolution(call: OperatorCall) -> Operation:
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


def _product(kind: Kind, left: int) -> Callable[[OperatorCall], Operation]:
    """A matrix product with the argument `left` as its left factor: each output adds up one whole row of it."""

    def operation(call: OperatorCall) -> Operation:
        macs = prod(call.output.shape) * call.tensor(left).shape[-1]
        return Operation(kind, macs, reach=call.extent, whole_map=True)

    return operation


def _pooling(kind: Kind, over_all: Kind) -> Callable[[OperatorCall], Operation | None]:
    def operation(call: OperatorCall) -> Operation | None:
        kernel = call.pair(1, _ONE)
        stride, padding = call.pair(2, kernel), call.pair(3, (0, 0))
        if kernel == call.extent and call.output.shape[-2:] == _ONE and padding == (0, 0):
            return Operation(over_all, 0, kernel, reach=kernel, whole_map=True)
        if kernel == stride == _ONE:  # along other axes, as inside a local response norm
            return None
        return Operation(kind, 0, kernel, stride, padding, reach=kernel, step=stride)

    return operation


def _adaptive(kind: Kind, over_all: Kind) -> Callable[[OperatorCall], Operation | None]:
    """Pooling to a given size, which does nothing if the map has that size.

    Windows of different sizes count as the largest that a fixed stride needs: N - (M - 1) * (N // M) for M of N values.
    """

    def operation(call: OperatorCall) -> Operation | None:
        (high, wide), (rows, columns) = call.extent, call.output.shape[-2:]
        if (rows, columns) == call.extent:
            return None
        if (rows, columns) == _ONE:
            return Operation(over_all, 0, call.extent, reach=call.extent, whole_map=True)
        stride = (high // rows, wide // columns)
        kernel = (high - (rows - 1) * stride[0], wide - (columns - 1) * stride[1])
        return Operation(kind, 0, kernel, stride, (0, 0), reach=kernel, step=stride)

    return operation


def _reduction(kind: Kind) -> Callable[[OperatorCall], Operation | None]:
    """A mean or maximum over the whole map; over other axes it is no pooling."""

    def operation(call: OperatorCall) -> Operation | None:
        source = call.tensor(0)
        axes = call.arguments[1] if len(call.arguments) > 1 else None
        if source.ndim != 4 or not isinstance(axes, Sequence) or {axis % 4 for axis in axes} != {2, 3}:
            return None
        return Operation(kind, 0, call.extent, reach=call.extent, whole_map=True)

    return operation


def _plain(kind: Kind) -> Callable[[OperatorCall], Operation]:
    return lambda _call: Operation(kind)


_AVERAGE = (Kind.AVERAGE_POOLING, Kind.GLOBAL_AVERAGE_POOLING)
_MAX = (Kind.MAX_POOLING, Kind.GLOBAL_MAX_POOLING)
_OPERATIONS: Mapping[object, Callable[[OperatorCall], Operation | None]] = MappingProxyType(
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


def operation_of(operator: object, call: OperatorCall) -> Operation | None:
    """The operation of that call, or None if it keeps the feature map (activations, sums, reshapes).

    Raises ValueError for a transposed convolution, whose cost is not defined here.
    """
    known = _OPERATIONS.get(operator)
    return known(call) if known else None
