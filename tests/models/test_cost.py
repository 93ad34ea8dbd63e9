"""The arithmetic of single layers: every figure that the lectures and papers work out by hand."""

import pytest

from models.analysis.cost import ReceptiveField, convolution_macs, largest


@pytest.mark.parametrize(
    ("output", "kernel", "inputs", "macs"),
    [
        ((32, 28, 28), (5, 5), 192, 120_422_400),
        ((16, 28, 28), (1, 1), 192, 2_408_448),
        ((32, 28, 28), (5, 5), 16, 10_035_200),
        ((48, 14, 14), (5, 5), 480, 112_896_000),
        ((16, 14, 14), (1, 1), 480, 5_268_480 - 3_763_200),
        ((48, 14, 14), (5, 5), 16, 3_763_200),
        ((1024, 1, 1), (7, 7), 1024, 51_380_224),
        ((1, 1, 1), (3, 1), 1, 3),
        ((1, 1, 1), (1, 3), 1, 3),
    ],
)
def test_convolution(output: tuple[int, int, int], kernel: tuple[int, int], inputs: int, macs: int) -> None:
    """A convolution costs its outputs times its kernel times its input channels."""
    assert convolution_macs(output, kernel, inputs) == macs


def test_groups() -> None:
    """Each output of a grouped convolution sees only the channels of its group; they must divide."""
    whole = convolution_macs((256, 27, 27), (5, 5), 96)

    assert convolution_macs((256, 27, 27), (5, 5), 96, groups=2) == whole // 2
    assert convolution_macs((6, 1, 1), (3, 3), 6, groups=6) == 54
    with pytest.raises(ValueError, match="do not divide into 3 groups"):
        convolution_macs((256, 27, 27), (5, 5), 96, groups=3)


def test_receptive_field() -> None:
    """The field grows by (F - 1) * D jumps and the jump by the stride, each axis for itself."""
    conv1 = ReceptiveField().through((11, 11), (4, 4))
    pool1 = conv1.through((3, 3), (2, 2))

    assert (conv1.size, conv1.jump) == ((11, 11), (4, 4))
    assert (pool1.size, pool1.jump) == ((19, 19), (8, 8))
    assert pool1.through((5, 5)).size == (51, 51)
    assert ReceptiveField().through((3, 3)).through((3, 3)).size == ReceptiveField().through((5, 5)).size
    assert ReceptiveField().through((1, 7), (1, 2)) == ReceptiveField((1, 7), (1, 2))
    assert ReceptiveField().through((3, 3), dilation=(2, 4)).size == (5, 9)


def test_merged_receptive_field() -> None:
    """Where feature maps meet, the largest field of each axis counts."""
    assert ReceptiveField((3, 9), (2, 2)).merged(ReceptiveField((5, 5), (2, 2))) == ReceptiveField((5, 9), (2, 2))
    assert largest((3, 9), (5, 5), (4, 4)) == (5, 9)
