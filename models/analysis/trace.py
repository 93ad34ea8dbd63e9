"""Walks through a network once and writes down its layers: costs, shapes, receptive fields. Imports torch.

The walk sees every operator that runs, so that pooling and products written as functions count like modules. It runs
on PyTorch's `meta` device, which computes shapes only: no values, no memory, and the network itself is not touched.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.analysis.cost import ReceptiveField, Size
from models.analysis.layer_table import Kind, Layer, LayerTable
from models.analysis.operators import Call, Operation, operation_of
from models.analysis.stages import Place, Position, position_of, staged
from models.catalog import InputSpec


@dataclass(frozen=True, slots=True)
class _Trail:
    """What is known of a tensor: what one of its values sees, and the map (height, width) that all of them span."""

    reach: ReceptiveField
    extent: Size


@dataclass(slots=True)
class _Frame:
    """A module that is running: its operations since the last row, and the parameters that they took."""

    name: str
    module: nn.Module
    input: Tensor
    operations: list[Operation] = field(default_factory=list)
    parameters: int = 0

    @property
    def leaf(self) -> bool:
        """Whether it has no layers inside, so that all it does is one row."""
        return not _has_layers(self.module)


class _Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the tensors through every operator, and writes a row for each layer."""

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Layer] = []
        self.positions: list[Position] = []
        self.outputs: dict[str, tuple[int, ...]] = {}  # of each module, by its path
        self._containers = {name for name, module in network.named_modules() if _has_layers(module)}
        self._unseen = {id(value): value.numel() for value in parameters.values()}
        self._trails: dict[int, _Trail] = {}
        self._kept: list[Tensor] = []  # alive, so that no two tensors share an id
        self._frames: list[_Frame] = []

    def begin(self, image: Tensor) -> None:
        """This tensor is the input: each value sees itself."""
        self._follow(image, _Trail(ReceptiveField(), (image.shape[-2], image.shape[-1])))

    def enter(self, name: str, module: nn.Module, source: Tensor) -> None:
        """A module begins to run on `source`."""
        self._frames.append(_Frame(name, module, source))

    def leave(self, output: Tensor) -> None:
        """The innermost module gives `output`; what it did that has no row yet is one."""
        frame = self._frames.pop()
        self.outputs[frame.name] = tuple(output.shape[1:])
        changes = output.numel() != frame.input.numel() or isinstance(frame.module, nn.LocalResponseNorm)
        if frame.leaf and (frame.operations or changes):
            self._leaf(frame, output)
        elif frame.parameters:
            self._row(frame, frame.input, output, _own_kind(frame.module), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and see what it did."""
        result = func(*args, **(kwargs or {}))
        self._see(func.overloadpacket, args, [value for value in tree_leaves(result) if isinstance(value, Tensor)])
        return result

    def _see(self, operator: object, arguments: tuple[Any, ...], outputs: list[Tensor]) -> None:
        sources = [value for value in tree_leaves(arguments) if isinstance(value, Tensor)]
        frame = self._frames[-1]
        frame.parameters += sum(self._unseen.pop(id(value), 0) for value in sources)
        trails = [self._trails[id(value)] for value in sources if id(value) in self._trails]
        if not trails or not outputs:
            return
        reach, extent = trails[0].reach, trails[0].extent
        for other in trails[1:]:
            reach = reach.merged(other.reach)
            extent = (max(extent[0], other.extent[0]), max(extent[1], other.extent[1]))
        operation = operation_of(operator, Call(arguments, outputs[0], extent))
        if operation:
            reach = reach.through(operation.reach, operation.step)
            extent = (1, 1) if operation.whole else extent
        for output in outputs:
            shape = output.shape
            self._follow(output, _Trail(reach, (shape[-2], shape[-1]) if output.ndim >= 4 else extent))
        if operation and frame.leaf:
            frame.operations.append(operation)
        elif operation:
            self._row(frame, sources[0], outputs[0], operation.kind, operation)

    def _leaf(self, frame: _Frame, output: Tensor) -> None:
        """One row for all that a module without layers inside has done."""
        operation = frame.operations[0] if len(frame.operations) == 1 else None
        kind: str = _own_kind(frame.module)
        if operation and _is_torchs(frame.module):
            kind = operation.kind
        self._row(frame, frame.input, output, kind, operation)

    def _row(self, frame: _Frame, source: Tensor, output: Tensor, kind: str, operation: Operation | None) -> None:
        own = frame.name if frame.leaf or not operation else f"{frame.name}.{kind.replace(' ', '_')}".strip(".")
        name = own or type(frame.module).__name__.lower()
        trail = self._trails.get(id(output))
        macs = sum(one.macs for one in frame.operations) or (operation.macs if operation else 0)
        self.rows.append(
            Layer(
                name=name,
                kind=kind,
                stage="",
                input=tuple(source.shape[1:]),
                output=tuple(output.shape[1:]),
                parameters=frame.parameters,
                macs=macs,
                receptive_field=trail.reach.size if trail else None,
                kernel=operation.kernel if operation else None,
                stride=operation.stride if operation else None,
                padding=operation.padding if operation else None,
                groups=operation.groups if operation else None,
            )
        )
        self.positions.append(position_of(frame.name, self._containers))
        frame.parameters = 0

    def _follow(self, tensor: Tensor, trail: _Trail) -> None:
        self._kept.append(tensor)
        self._trails[id(tensor)] = trail


def network_layers(network: nn.Module, spec: InputSpec) -> LayerTable:
    """The layers of `network` in evaluation mode, for one image of `spec`; the network is left as it was.

    A layer that the run does not reach (an auxiliary head) is no row. Raises ValueError where the network has a
    transposed convolution, and what the network itself raises where it does not fit the input.
    """
    parameters = {name: value.to("meta") for name, value in network.named_parameters()}
    buffers = {name: value.to("meta") for name, value in network.named_buffers()}
    image = torch.empty(1, len(spec.channels.matrix), spec.crop, spec.crop, device="meta")
    walk = _Walk(network, parameters)
    walk.begin(image)
    with _evaluating(network), _watched(network, walk), torch.no_grad(), walk:
        functional_call(network, parameters | buffers, (image,))
    layers = staged(walk.rows, walk.positions)
    outputs = {}
    for layer, position in zip(layers, walk.positions, strict=True):  # the last of a stage says how it ends
        outputs[layer.stage] = walk.outputs[position.owner] if position.place is Place.BLOCK else layer.output
    channels, height, width = image.shape[1:]
    return LayerTable.of((channels, height, width), layers, outputs)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _watched(network: nn.Module, walk: _Walk) -> Iterator[None]:
    """Tell `walk` when each module begins and ends."""
    hooks = []
    for name, module in network.named_modules():

        def enter(module: nn.Module, inputs: object, name: str = name) -> None:
            walk.enter(name, module, _first(inputs))

        def leave(_module: nn.Module, _inputs: object, output: object) -> None:
            walk.leave(_first(output))

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(values: object) -> Tensor:
    """The first tensor of what a module takes or gives, which may be a list of them."""
    return next(value for value in tree_leaves(values) if isinstance(value, Tensor))


def _has_layers(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_torchs(module: nn.Module) -> bool:
    """Whether it is a layer of `torch.nn` or derived from one."""
    layers = [base for base in type(module).__mro__ if base is not nn.Module]
    return any(base.__module__.startswith("torch.nn.modules.") for base in layers)


def _own_kind(module: nn.Module) -> str:
    """The name of the class in words."""
    if isinstance(module, nn.LocalResponseNorm):
        return Kind.LOCAL_RESPONSE_NORM
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(module).__name__).split()
    return " ".join(word if word.isupper() else word.lower() for word in words)
