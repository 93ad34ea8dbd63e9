"""The input and output of an ONNX graph, or why it cannot be served: a square image in, a row of scores out."""

from dataclasses import dataclass
from enum import StrEnum

from onnx import ModelProto, TensorProto, ValueInfoProto

from export.common import ExportError
from export.importing.recipe import Recipe
from models.catalog import Channels
from models.weights.onnx_reader import IMAGE_TYPES, real_inputs

_SCORES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_SIGMOIDS = ("Sigmoid", "HardSigmoid")
_SAME_VALUES = (  # operators that keep the values, or change only their type
    "Identity",
    "Cast",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "QuantizeLinear",
    "DequantizeLinear",
)
_OLDEST_OPSET = 7  # before it, broadcasting was an attribute of each node


class UnsupportedError(ExportError):
    """The file cannot be served; the message names the cause and the remedy."""


class ChannelLayout(StrEnum):
    """The order of the axes of the network's input: channels first or last."""

    NCHW = "NCHW"
    NHWC = "NHWC"


@dataclass(frozen=True, slots=True)
class Signature:
    """The input and the output of a graph; `input` and `output` are their names.

    `element` is the TensorProto type of the input. `batch` is the batch size that the file fixes, or None. `size` is
    the height and width of the input in pixels.
    """

    input: str
    layout: ChannelLayout
    element: int
    batch: int | None
    size: int
    channels: int
    output: str

    def shape(self, batch: int | str) -> list[int | str]:
        """The shape of the network's input. `batch` is the batch size, or the name of a dynamic axis."""
        if self.layout is ChannelLayout.NCHW:
            return [batch, self.channels, self.size, self.size]
        return [batch, self.size, self.size, self.channels]


def read_signature(model: ModelProto, recipe: Recipe) -> Signature:
    """The signature of `model`; `recipe` adds what the file does not say.

    Raises UnsupportedError if the model is no classifier of square images.
    """
    image = _image(model)
    shape = _shape(image)
    if shape is None or len(shape) != 4:
        found = "of unknown shape" if shape is None else f"of shape {_shape_text(shape)}"
        raise UnsupportedError(
            f"the input {image.name!r} is {found}; an image classifier takes a batch of images, 4 axes"
        )
    element = image.type.tensor_type.elem_type
    if element not in IMAGE_TYPES:
        raise UnsupportedError(
            f"the input {image.name!r} is {TensorProto.DataType.Name(element).lower()}; "
            "float32, float16, double and uint8 are served"
        )
    channels = 1 if recipe.channels is Channels.GREY else 3
    layout = _layout(image.name, shape, channels)
    sides = (shape[2], shape[3]) if layout is ChannelLayout.NCHW else (shape[1], shape[2])
    size = _size(image.name, sides, recipe)
    return Signature(image.name, layout, element, shape[0], size, channels, _output(model, recipe))


def _image(model: ModelProto) -> ValueInfoProto:
    inputs = real_inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UnsupportedError(
            f"the graph has {len(inputs)} inputs ({names}); one image is served: "
            "make the others constants when exporting"
        )
    if not inputs[0].type.HasField("tensor_type"):
        raise UnsupportedError(
            f"the input {inputs[0].name!r} is no tensor; an image classifier takes a batch of images"
        )
    return inputs[0]


def _shape(value: ValueInfoProto) -> list[int | None] | None:
    """The axes of a tensor, None for a dynamic one, which old files write as 0 or -1."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _shape_text(shape: list[int | None]) -> str:
    return f"[{', '.join('?' if axis is None else str(axis) for axis in shape)}]"


def _layout(name: str, shape: list[int | None], channels: int) -> ChannelLayout:
    """The layout by the axis with as many entries as the recipe has channels; NCHW if neither axis is fixed."""
    second, last = shape[1], shape[3]
    if second == channels:
        return ChannelLayout.NCHW
    if last == channels:
        return ChannelLayout.NHWC
    if second is None or last is None:
        return ChannelLayout.NCHW if second is None else ChannelLayout.NHWC
    found = f"the input {name!r} is {_shape_text(shape)}"
    if 1 in (second, last):
        raise UnsupportedError(f'{found}, one channel; write channels = "grey"')
    if 3 in (second, last):
        raise UnsupportedError(f'{found}, three channels; write channels = "rgb" or "bgr"')
    raise UnsupportedError(f"{found}; images of one or three channels are served, in the second or the last axis")


def _size(name: str, sides: tuple[int | None, int | None], recipe: Recipe) -> int:
    height, width = sides
    if height is not None and width is not None and height != width:
        raise UnsupportedError(
            f"the input {name!r} is {height} x {width} pixels; only square inputs are served, "
            "because the photo is cropped to its centre square"
        )
    fixed = height if height is not None else width
    if fixed is None and recipe.size is None:
        raise UnsupportedError("the graph takes images of any size; write size = 224, or what it was trained on")
    if fixed is not None and recipe.size not in (None, fixed):
        raise UnsupportedError(f"the graph takes {fixed} x {fixed} pixels, not {recipe.size}; write size = {fixed}")
    size = fixed if fixed is not None else recipe.size
    assert size is not None
    return size


def _output(model: ModelProto, recipe: Recipe) -> str:
    outputs = {value.name: value for value in model.graph.output}
    described = ", ".join(f"{name} {_type_text(value)}" for name, value in outputs.items())
    if recipe.output_name is None and len(outputs) != 1:
        raise UnsupportedError(f'the graph has the outputs {described}; write output_name = "..." with one of them')
    name = recipe.output_name or next(iter(outputs))
    if name not in outputs:
        raise UnsupportedError(f"the graph has no output {name!r}; it has {described}")
    value = outputs[name]
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"the output {name!r} is {_type_text(value)}, as scikit-learn's converter writes; convert it with "
            "options={'zipmap': False}"
        )
    if (element := value.type.tensor_type.elem_type) not in _SCORES:
        raise UnsupportedError(
            f"the output {name!r} is {TensorProto.DataType.Name(element).lower()}, not a score of each class; "
            "export the network without what makes whole numbers of the scores, as ArgMax does"
        )
    if (operator := _last_operator(model, name)) in _SIGMOIDS:
        raise UnsupportedError(
            f"the output {name!r} ends in a {operator}, where an image may be of several classes or of none; one class "
            'of each image is served: export the network without it and write output = "logits"'
        )
    return name


def _last_operator(model: ModelProto, name: str) -> str:
    """The operator that computes the values of `name`, empty if `name` is the input."""
    producers = {output: node for node in model.graph.node for output in node.output}
    while (node := producers.get(name)) is not None and node.op_type in _SAME_VALUES and node.input:
        name = node.input[0]
    return node.op_type if node is not None else ""


def _type_text(value: ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return f"a {value.type.WhichOneof('value').removesuffix('_type')}"
    shape = _shape(value)
    return "of unknown shape" if shape is None else _shape_text(shape)


def check_opset(model: ModelProto) -> None:
    """Raise UnsupportedError if the opset is too old for the nodes that the import adds."""
    version = opset(model)
    if version < _OLDEST_OPSET:
        raise UnsupportedError(
            f"the graph is of opset {version} and cannot be converted; "
            f"export it again with opset {_OLDEST_OPSET} or more"
        )


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators in the model."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions, default=_OLDEST_OPSET)
