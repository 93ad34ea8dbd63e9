"""Arithmetic of single layers: sizes, parameters, multiply-accumulates, receptive fields. It knows no network."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image: learned parameters, and multiply-accumulates of convolutions and fully connected layers."""

    parameters: int
    macs: int


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Values along one side after a convolution or pooling, (N + 2P - F) / S + 1, rounded down.

    Raises ValueError where the kernel does not fit into the padded side.
    """
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"a kernel of {kernel} does not fit into {size} values with padding {padding}")
    return room // stride + 1


def convolution_weights(outputs: int, kernel: Size, inputs: int, groups: int = 1) -> int:
    """Weights of a convolution from `inputs` to `outputs` channels; its biases, if any, are `outputs` more.

    Raises ValueError where the channels do not divide into the groups.
    """
    if inputs % groups or outputs % groups:
        raise ValueError(f"{inputs} and {outputs} channels do not divide into {groups} groups")
    return outputs * prod(kernel) * (inputs // groups)


def convolution_macs(output: tuple[int, int, int], kernel: Size, inputs: int, groups: int = 1) -> int:
    """Multiply-accumulates of a convolution with `output` = (channels, height, width) and `inputs` channels.

    Each weight is used once at every place of the output. Raises ValueError as `convolution_weights` does.
    """
    channels, *places = output
    return convolution_weights(channels, kernel, inputs, groups) * prod(places)


def fully_connected_macs(*sizes: int) -> int:
    """Multiply-accumulates, and equally weights, of fully connected layers from each of `sizes` to the next.

    Biases, if any, are parameters and the sum of all sizes but the first.
    """
    return sum(inputs * outputs for inputs, outputs in pairwise(sizes))


@dataclass(frozen=True, slots=True)
class Reach:
    """What one value of a map sees: `field` pixels of the input; its neighbour sees the same, `jump` pixels on.

    Both are (height, width). Nothing is clipped where the field reaches over the edge of the image.
    """

    field: Size = (1, 1)
    jump: Size = (1, 1)

    def through(self, kernel: Size, stride: Size = (1, 1), dilation: Size = (1, 1)) -> "Reach":
        """After a convolution or pooling: field + (F - 1) * D * jump, and jump * S (Dumoulin, Visin 2016)."""
        field = [
            seen + (size - 1) * spread * step
            for seen, size, spread, step in zip(self.field, kernel, dilation, self.jump, strict=True)
        ]
        jump = [step * factor for step, factor in zip(self.jump, stride, strict=True)]
        return Reach((field[0], field[1]), (jump[0], jump[1]))

    def merged(self, other: "Reach") -> "Reach":
        """After a sum, product or concatenation of two maps: the larger of each."""
        (high, wide), (down, right) = other.field, other.jump
        return Reach(
            (max(self.field[0], high), max(self.field[1], wide)), (max(self.jump[0], down), max(self.jump[1], right))
        )
