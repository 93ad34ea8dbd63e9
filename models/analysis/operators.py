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
    (global pooling, fully connected layer).
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


def _fully_connected(call: OperatorCall) -> Operation:
    """Each output adds up one whole row of the left factor."""
    macs = prod(call.output.shape) * call.tensor(1).shape[-1]
    return Operation(Kind.FULLY_CONNECTED, macs, reach=call.extent, whole_map=True)


def _max_pooling(call: OperatorCall) -> Operation:
    return _pooling(Kind.MAX_POOLING, call)


def _average_pooling(call: OperatorCall) -> Operation:
    if call.output.shape[-2:] == _ONE:
        return _global_average(call)
    return _pooling(Kind.AVERAGE_POOLING, call)


def _pooling(kind: Kind, call: OperatorCall) -> Operation:
    kernel = call.pair(1, _ONE)
    stride, padding = call.pair(2, kernel), call.pair(3, (0, 0))
    return Operation(kind, 0, kernel, stride, padding, reach=kernel, step=stride)


def _mean(call: OperatorCall) -> Operation | None:
    """A mean over the whole map; over other axes it is no pooling."""
    axes = call.arguments[1] if len(call.arguments) > 1 else None
    if call.tensor(0).ndim != 4 or not isinstance(axes, Sequence) or {axis % 4 for axis in axes} != {2, 3}:
        return None
    return _global_average(call)


def _global_average(call: OperatorCall) -> Operation:
    return Operation(Kind.GLOBAL_AVERAGE_POOLING, 0, call.extent, reach=call.extent, whole_map=True)


def _batch_norm(_call: OperatorCall) -> Operation:
    return Operation(Kind.BATCH_NORM)


_OPERATIONS: Mapping[object, Callable[[OperatorCall], Operation | None]] = MappingProxyType(
    {
        _aten.convolution: _convolution,
        _aten.addmm: _fully_connected,
        _aten.max_pool2d_with_indices: _max_pooling,
        _aten.avg_pool2d: _average_pooling,
        _aten.mean: _mean,
        _aten.native_batch_norm: _batch_norm,
    }
)
"""The operators of the catalog's networks."""


def operation_of(operator: object, call: OperatorCall) -> Operation | None:
    """The operation of that call, or None if it keeps the feature map (activations, sums, reshapes).

    Raises ValueError for a transposed convolution, whose cost is not defined here.
    """
    known = _OPERATIONS.get(operator)
    return known(call) if known else None
