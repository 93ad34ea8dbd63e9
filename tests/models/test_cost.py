"""The arithmetic of single layers: every figure that the lectures and papers work out by hand."""

import pytest

from models.analysis.cost import Reach, convolution_macs, convolution_weights, fully_connected_macs, output_size


@pytest.mark.parametrize(
    ("output", "kernel", "inputs", "macs"),
    [
        ((32, 28, 28), (5, 5), 192, 120_422_400),
        ((16, 28, 28), (1, 1), 192, 2_408_448),
        ((32, 28, 28), (5, 5), 16, 10_035_200),
        ((48, 14, 14), (5, 5), 480, 112_896_000),
    ],
    ids=["5x5", "1x1 before", "5x5 reduced", "5x5 of 480"],
)
def test_convolution(output: tuple[int, int, int], kernel: tuple[int, int], inputs: int, macs: int) -> None:
    """A convolution costs its outputs times its kernel times its input channels."""
    assert convolution_macs(output, kernel, inputs) == macs


def test_reductions() -> None:
    """A 1x1 convolution before the 5x5 saves 90 % of 3a's and 95 % of 4a's multiply-accumulates."""
    of_3a = convolution_macs((16, 28, 28), (1, 1), 192) + convolution_macs((32, 28, 28), (5, 5), 16)
    of_4a = convolution_macs((16, 14, 14), (1, 1), 480) + convolution_macs((48, 14, 14), (5, 5), 16)

    assert of_3a == 12_443_648
    assert of_4a == 5_268_480


def test_factored_convolutions() -> None:
    """Weights per pair of channels: 25 against 18 of two 3x3, 28 % fewer; 9 against 6 of 3x1 and 1x3, 33 % fewer."""
    five, three, long, wide = (convolution_weights(1, kernel, 1) for kernel in ((5, 5), (3, 3), (3, 1), (1, 3)))

    assert (five, 2 * three) == (25, 18)
    assert (three, long + wide) == (9, 6)


def test_fully_connected() -> None:
    """A fully connected layer has a weight, and costs an operation, per pair; it is a convolution of the whole map."""
    assert fully_connected_macs(7 * 7 * 1024, 1024) == 51_380_224
    assert convolution_macs((1024, 1, 1), (7, 7), 1024) == 51_380_224
    assert fully_connected_macs(224 * 224, 1024, 2048, 4096, 1000) == 65_961_984
    assert fully_connected_macs(10) == 0


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "output"),
    [(7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (7, 3, 1, 1, 7), (7, 3, 2, 1, 4), (224, 11, 4, 2, 55), (3, 3, 1, 0, 1)],
)
def test_output_size(size: int, kernel: int, stride: int, padding: int, output: int) -> None:
    """(N + 2P - F) / S + 1, rounded down."""
    assert output_size(size, kernel, stride, padding) == output


def test_a_kernel_that_does_not_fit() -> None:
    """A kernel larger than the padded side is refused, not answered with nothing or less."""
    with pytest.raises(ValueError, match="a kernel of 5 does not fit into 2 values with padding 1"):
        output_size(2, 5, 1, 1)


def test_groups() -> None:
    """Each output of a grouped convolution sees only the channels of its group; they must divide."""
    whole = convolution_macs((256, 27, 27), (5, 5), 96)

    assert convolution_macs((256, 27, 27), (5, 5), 96, groups=2) == whole // 2
    assert convolution_weights(256, (5, 5), 96, groups=2) == 307_200
    assert convolution_weights(6, (3, 3), 6, groups=6) == 54
    with pytest.raises(ValueError, match="do not divide into 3 groups"):
        convolution_macs((256, 27, 27), (5, 5), 96, groups=3)


def test_reach() -> None:
    """The field grows by (F - 1) * D jumps and the jump by the stride, each axis for itself."""
    conv1 = Reach().through((11, 11), (4, 4))
    pool1 = conv1.through((3, 3), (2, 2))

    assert (conv1.field, conv1.jump) == ((11, 11), (4, 4))
    assert (pool1.field, pool1.jump) == ((19, 19), (8, 8))
    assert pool1.through((5, 5)).field == (51, 51)
    assert Reach().through((3, 3)).through((3, 3)).field == Reach().through((5, 5)).field
    assert Reach().through((1, 7), (1, 2)) == Reach((1, 7), (1, 2))
    assert Reach().through((3, 3), dilation=(2, 4)).field == (5, 9)


def test_merged_reach() -> None:
    """Where maps meet, the largest field of each axis counts."""
    assert Reach((3, 9), (2, 2)).merged(Reach((5, 5), (2, 2))) == Reach((5, 9), (2, 2))
