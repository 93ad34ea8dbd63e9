"""What one value of an ONNX graph sees of the image, and how its axes lie: through nodes that are no layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.importing.signature import Layout
from models.analysis.cost import ReceptiveField, Size

Shape = tuple[int, ...]

_AXES = MappingProxyType({Layout.NCHW: (1, 2, 3), Layout.NHWC: (3, 1, 2)})  # of channels, height, width
_ACTIVATIONS = (
    *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu"),
    *("Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu", "FastGelu", "QuickGelu"),
)
_ARITHMETIC = (
    *("Abs", "Add", "Ceil", "Div", "Erf", "Exp", "Floor", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow"),
    *("Reciprocal", "Round", "Sign", "Sqrt", "Sub", "Sum"),
)
_LOGIC = ("And", "Equal", "Greater", "Less", "Not", "Or", "Where", "Xor")
_QUANTISED = ("QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid")
_CONVERSIONS = ("Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear")
_SAME = frozenset((*_ACTIVATIONS, *_ARITHMETIC, *_LOGIC, *_QUANTISED, *_CONVERSIONS))
_RESHAPED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_NO_DATA = frozenset({"Constant", "ConstantOfShape", "Shape", "Size"})


@dataclass(frozen=True, slots=True)
class Trail:
    """`reach` of one value, None where it is not known; `extent`, the map (height, width) that all values span, also
    where it is flattened by now; `layout` of the last map, None where it is not known.
    """

    reach: ReceptiveField | None
    extent: Size
    layout: Layout | None

    def through(self, kernel: Size | None, step: Size = (1, 1)) -> "Trail":
        """After a kernel of that size, its dilation included; None where it is not known how far that reaches."""
        known = self.reach is not None and kernel is not None
        return replace(self, reach=self.reach.through(kernel, step) if known else None)  # type: ignore[union-attr, arg-type]

    def over(self, shape: Shape) -> "Trail":
        """The same over a map of that shape, where it is one."""
        return replace(self, extent=extent) if (extent := map_size(shape, self.layout)) else self


UNKNOWN = Trail(None, (1, 1), None)


@dataclass(frozen=True, slots=True)
class Step:
    """One node that runs: the shapes of its values and the stored ones by name, and how many images run at once."""

    node: NodeProto
    shapes: Mapping[str, Shape]
    stored: Mapping[str, TensorProto]
    batch: int

    def shape(self, place: int) -> Shape:
        """Of that input, empty where it is not known."""
        return self.shapes.get(self.node.input[place], ()) if place < len(self.node.input) else ()

    @property
    def output(self) -> Shape:
        """Of the first output, empty where it is not known."""
        return self.shapes.get(self.node.output[0], ())

    def attribute(self, name: str, default: int) -> int:
        """That whole number of the node."""
        return next((int(one.i) for one in self.node.attribute if one.name == name), default)

    def text(self, name: str) -> str:
        """That word of the node, empty where it is left out."""
        return next((one.s.decode() for one in self.node.attribute if one.name == name), "")

    def numbers(self, name: str, place: int | None = None) -> tuple[int, ...] | None:
        """Those of the attribute, or in newer opsets of the stored input at `place`; None where there are none."""
        for one in self.node.attribute:
            if one.name == name:
                return tuple(int(value) for value in helper.get_attribute_value(one))
        if place is not None and place < len(self.node.input) and self.node.input[place] in self.stored:
            values = numpy_helper.to_array(self.stored[self.node.input[place]]).reshape(-1)
            return tuple(int(value) for value in values)
        return None


def map_size(shape: Shape, layout: Layout | None) -> Size | None:
    """Height and width of a batch of maps, None for anything else."""
    if layout is None or len(shape) != 4:
        return None
    _, high, wide = _AXES[layout]
    return shape[high], shape[wide]


def one_image(shape: Shape, layout: Layout | None) -> Shape:
    """Without the batch: a map as (channels, height, width), anything else in the order that it has."""
    return tuple(shape[axis] for axis in _AXES[layout]) if layout and len(shape) == 4 else shape[1:]


def spatial(axes: Sequence[int], rank: int, layout: Layout | None) -> bool:
    """Whether these axes of a batch of maps are height and width, and no other."""
    return layout is not None and rank == 4 and {axis % rank for axis in axes} == set(_AXES[layout][1:])


def carried(step: Step, trails: Sequence[Trail]) -> Trail | None:
    """The trail after a node that is no layer, from those of its inputs; None where no data of the image comes out.

    Each value is taken to see what those see that it is made of. After a node that moves values between places in
    a way that is not known here, nothing is known.
    """
    if not trails or step.node.op_type in _NO_DATA:
        return None
    operator = step.node.op_type
    if operator in _SAME:
        return _merged(trails).over(step.output)
    if operator in _RESHAPED:
        return _reshaped(step, trails[0])
    if operator == "Transpose":
        return _transposed(step, trails[0])
    after = _merged(trails).over(step.output)
    known = _MOVES.get(operator)
    return after if known and known(step, trails[0]) else replace(after, reach=None)


def _merged(trails: Sequence[Trail]) -> Trail:
    whole = trails[0]
    for other in trails[1:]:
        known = whole.reach is not None and other.reach is not None
        whole = Trail(
            whole.reach.merged(other.reach) if known else None,  # type: ignore[union-attr, arg-type]
            (max(whole.extent[0], other.extent[0]), max(whole.extent[1], other.extent[1])),
            whole.layout if whole.layout is other.layout else None,
        )
    return whole


def _reshaped(step: Step, trail: Trail) -> Trail:
    """A map is found again where two axes next to each other are as long as it; where both ends fit, it is unknown."""
    shape = step.output
    if len(shape) != 4 or shape == step.shape(0):
        return trail
    fits = [layout for layout in Layout if map_size(shape, layout) == trail.extent and shape[0] == step.batch]
    return replace(trail, layout=fits[0] if len(fits) == 1 else None)


def _transposed(step: Step, trail: Trail) -> Trail:
    order = step.numbers("perm") or tuple(reversed(range(len(step.output))))
    if len(order) != 4 or trail.layout is None:
        return trail
    places = tuple(order.index(axis) for axis in _AXES[trail.layout])
    return replace(trail, layout=next((layout for layout, axes in _AXES.items() if axes == places), None))


def _along_channels(axes: Sequence[int] | None, rank: int, trail: Trail) -> bool:
    """Whether they are the axis of the channels, or the values of a row."""
    if not axes or not rank:
        return False
    channels = _AXES[trail.layout][0] if trail.layout and rank == 4 else 1 if rank == 2 else None
    return {axis % rank for axis in axes} == {channels}


def _axis(name: str, default: int) -> Callable[[Step, Trail], bool]:
    """For a node that works along one axis: places keep what they are where it is that of the channels."""
    return lambda step, trail: _along_channels([step.attribute(name, default)], _rank(step), trail)


def _rank(step: Step) -> int:
    """Of what the node takes; its constants, such as scales, have fewer axes."""
    return max((len(step.shape(place)) for place in range(len(step.node.input))), default=0)


def _axes(place: int) -> Callable[[Step, Trail], bool]:
    """For a node that works along the axes of an attribute, or of the input at `place`."""
    return lambda step, trail: _along_channels(step.numbers("axes", place), _rank(step), trail)


def _softmax(step: Step, trail: Trail) -> bool:
    return len(step.output) == 2 or prod(trail.extent) == 1 or _axis("axis", -1)(step, trail)


def _padded(step: Step, trail: Trail) -> bool:
    return trail.layout is not None and len(step.output) == 4


_MOVES: Mapping[str, Callable[[Step, Trail], bool]] = MappingProxyType(
    {
        "Concat": _axis("axis", 1),
        "Gather": _axis("axis", 0),
        "LogSoftmax": _softmax,
        "Pad": _padded,
        "QLinearConcat": _axis("axis", 1),
        "ReduceL2": _axes(1),
        "ReduceMax": _axes(1),
        "ReduceMean": _axes(1),
        "ReduceSum": _axes(1),
        "Slice": _axes(3),
        "Softmax": _softmax,
        "Split": _axis("axis", 0),
    }
)

SHAPED = (_SAME | _RESHAPED | _MOVES.keys() | {"Transpose"}) - {"Identity"}
"""The operators that are followed by their shapes; what they take and give are tensors, not sequences of them."""
