"""Parameters, multiply-accumulates and receptive fields of single layers."""

from dataclasses import dataclass
from math import prod

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Learned parameters, and multiply-accumulates of convolutions and fully connected layers for one image."""

    parameters: int
    macs: int


def convolution_macs(output: tuple[int, int, int], kernel: Size, inputs: int, groups: int = 1) -> int:
    """Multiply-accumulates of a convolution from `inputs` channels to `output` = (channels, height, width).

    Each weight is used once at every position of the output. Raises ValueError if `groups` does not divide the
    channels.
    """
    channels, height, width = output
    if inputs % groups or channels % groups:
        raise ValueError(f"{inputs} and {channels} channels do not divide into {groups} groups")
    return channels * height * width * prod(kernel) * (inputs // groups)


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """The `size` in input pixels that one value of a feature map sees; the next value sees the same, `jump` pixels on.

    Both are (height, width). A field is not clipped if it reaches over the edge of the image.
    """

    size: Size = (1, 1)
    jump: Size = (1, 1)

    def through(self, kernel: Size, stride: Size = (1, 1), dilation: Size = (1, 1)) -> "ReceptiveField":
        """The field after a convolution or pooling: size + (F - 1) * D * jump, and jump * S (Dumoulin, Visin 2016)."""
        sizes = [
            size + (side - 1) * spread * jump
            for size, side, spread, jump in zip(self.size, kernel, dilation, self.jump, strict=True)
        ]
        jumps = [jump * factor for jump, factor in zip(self.jump, stride, strict=True)]
        return ReceptiveField((sizes[0], sizes[1]), (jumps[0], jumps[1]))

    def merged(self, other: "ReceptiveField") -> "ReceptiveField":
        """The field after a sum, product or concatenation of two feature maps: the larger of each."""
        return ReceptiveField(largest(self.size, other.size), largest(self.jump, other.jump))


def largest(*sizes: Size) -> Size:
    """The largest height and the largest width of these sizes."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)
