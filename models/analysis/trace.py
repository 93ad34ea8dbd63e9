"""Runs a network once and lists its layers: costs, shapes, receptive fields, stages. Imports torch.

The trace sees every operator that runs, so that pooling and products written as functions count like modules. It runs
on PyTorch's `meta` device, which computes only shapes: it needs no memory for values and does not change the network.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.analysis.cost import ReceptiveField, Size, largest
from models.analysis.layer_table import Kind, Layer, LayerTable
from models.analysis.operators import Operation, OperatorCall, operation_of
from models.analysis.stages import Position, StageNaming, position_of, with_stages
from models.catalog import InputSpec


@dataclass(frozen=True, slots=True)
class _Seen:
    """The receptive field of one value, and the (height, width) of the tensor's feature map, also after a flatten."""

    receptive_field: ReceptiveField
    extent: Size


@dataclass(slots=True)
class _RunningModule:
    """A module that is running, with the operations and parameters since its last row."""

    name: str
    module: nn.Module
    input: Tensor
    operations: list[Operation] = field(default_factory=list)
    parameters: int = 0

    @property
    def leaf(self) -> bool:
        """Whether it has no layers inside, so that all it does is one row."""
        return not _has_layers(self.module)


class _LayerTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the tensors through every operator and adds a row for each layer."""

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Layer] = []
        self.positions: list[Position] = []
        self.outputs: dict[str, tuple[int, ...]] = {}  # by module path
        self._containers = {name for name, module in network.named_modules() if _has_layers(module)}
        self._uncounted = {id(value): value.numel() for value in parameters.values()}
        self._seen: dict[int, _Seen] = {}
        self._kept: list[Tensor] = []  # alive, so that no two tensors share an id
        self._running: list[_RunningModule] = []

    def begin(self, image: Tensor) -> None:
        """Take `image` as the input, of which each value sees itself."""
        self._follow(image, _Seen(ReceptiveField(), (image.shape[-2], image.shape[-1])))

    def enter(self, name: str, module: nn.Module, source: Tensor) -> None:
        """Note that a module begins to run on `source`."""
        self._running.append(_RunningModule(name, module, source))

    def leave(self, output: Tensor) -> None:
        """Note that the innermost module gives `output`, and add a row for what has none yet."""
        running = self._running.pop()
        self.outputs[running.name] = tuple(output.shape[1:])
        changes = output.numel() != running.input.numel() or isinstance(running.module, nn.LocalResponseNorm)
        if running.leaf and (running.operations or changes):
            operation = running.operations[0] if len(running.operations) == 1 else None
            known = operation is not None and _is_torchs(running.module)
            kind = operation.kind if operation and known else _kind_of(running.module)
            self._add_row(running, running.input, output, kind, operation)
        elif running.parameters:
            self._add_row(running, running.input, output, _kind_of(running.module), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and note what it did."""
        result = func(*args, **(kwargs or {}))
        self._note(func.overloadpacket, args, [value for value in tree_leaves(result) if isinstance(value, Tensor)])
        return result

    def _note(self, operator: object, arguments: tuple[Any, ...], outputs: list[Tensor]) -> None:
        sources = [value for value in tree_leaves(arguments) if isinstance(value, Tensor)]
        running = self._running[-1]
        running.parameters += sum(self._uncounted.pop(id(value), 0) for value in sources)
        seen = [self._seen[id(value)] for value in sources if id(value) in self._seen]
        if not seen or not outputs:
            return
        receptive_field, extent = seen[0].receptive_field, largest(*(one.extent for one in seen))
        for other in seen[1:]:
            receptive_field = receptive_field.merged(other.receptive_field)
        operation = operation_of(operator, OperatorCall(arguments, outputs[0], extent))
        if operation:
            receptive_field = receptive_field.through(operation.reach, operation.step)
            extent = (1, 1) if operation.whole_map else extent
        for output in outputs:
            shape = output.shape
            self._follow(output, _Seen(receptive_field, (shape[-2], shape[-1]) if output.ndim >= 4 else extent))
        if operation and running.leaf:
            running.operations.append(operation)
        elif operation:
            self._add_row(running, sources[0], outputs[0], operation.kind, operation)

    def _add_row(
        self, running: _RunningModule, source: Tensor, output: Tensor, kind: str, operation: Operation | None
    ) -> None:
        own = running.name if running.leaf or not operation else f"{running.name}.{kind.replace(' ', '_')}".strip(".")
        seen = self._seen.get(id(output))
        self.rows.append(
            Layer(
                name=own or type(running.module).__name__.lower(),
                kind=kind,
                stage="",
                input=tuple(source.shape[1:]),
                output=tuple(output.shape[1:]),
                parameters=running.parameters,
                macs=sum(one.macs for one in running.operations) or (operation.macs if operation else 0),
                receptive_field=seen.receptive_field.size if seen else None,
                kernel=operation.kernel if operation else None,
                stride=operation.stride if operation else None,
                padding=operation.padding if operation else None,
                groups=operation.groups if operation else None,
            )
        )
        self.positions.append(position_of(running.name, self._containers))
        running.parameters = 0

    def _follow(self, tensor: Tensor, seen: _Seen) -> None:
        self._kept.append(tensor)
        self._seen[id(tensor)] = seen


def network_layers(network: nn.Module, spec: InputSpec, stages: Sequence[str] = ()) -> LayerTable:
    """The layers of `network` in evaluation mode for one image of `spec`; the network does not change.

    `stages` are names for the stages in order. A layer that the run does not reach, such as an auxiliary head, has no
    row. Raises ValueError if the network has a transposed convolution or another number of stages, and what the network
    itself raises if it does not fit the input.
    """
    parameters = {name: value.to("meta") for name, value in network.named_parameters()}
    buffers = {name: value.to("meta") for name, value in network.named_buffers()}
    image = torch.empty(1, len(spec.channels.matrix), spec.crop, spec.crop, device="meta")
    trace = _LayerTrace(network, parameters)
    trace.begin(image)
    with _evaluating(network), _watched(network, trace), torch.no_grad(), trace:
        functional_call(network, parameters | buffers, (image,))
    layers = with_stages(trace.rows, trace.positions)
    outputs = {}
    for layer, position in zip(layers, trace.positions, strict=True):  # the last layer of a stage counts
        block = position.naming is StageNaming.BLOCK
        outputs[layer.stage] = trace.outputs[position.parent] if block else layer.output
    channels, height, width = image.shape[1:]
    table = LayerTable.of((channels, height, width), layers, outputs)
    return table.with_stage_names(stages) if stages else table


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _watched(network: nn.Module, trace: _LayerTrace) -> Iterator[None]:
    """Tells `trace` when each module begins and ends."""
    hooks = []
    for name, module in network.named_modules():

        def enter(module: nn.Module, inputs: object, name: str = name) -> None:
            trace.enter(name, module, _first_tensor(inputs))

        def leave(_module: nn.Module, _inputs: object, output: object) -> None:
            trace.leave(_first_tensor(output))

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_tensor(values: object) -> Tensor:
    return next(value for value in tree_leaves(values) if isinstance(value, Tensor))


def _has_layers(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_torchs(module: nn.Module) -> bool:
    """Whether it is a layer of `torch.nn` or derived from one."""
    layers = [base for base in type(module).__mro__ if base is not nn.Module]
    return any(base.__module__.startswith("torch.nn.modules.") for base in layers)


def _kind_of(module: nn.Module) -> str:
    """The class name in words, such as `radial basis`."""
    if isinstance(module, nn.LocalResponseNorm):
        return Kind.LOCAL_RESPONSE_NORM
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(module).__name__).split()
    return " ".join(word if word.isupper() else word.lower() for word in words)
