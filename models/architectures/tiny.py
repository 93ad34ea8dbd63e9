"""A network small enough to export and run in tests within a second; its answers mean nothing."""

from torch import Tensor, nn


class Block(nn.Sequential):
    """Convolution 3x3 with stride 2, batch norm, ReLU: the smallest piece that every later network repeats."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Tiny(nn.Module):
    """Three blocks, global average pooling, one fully connected layer. Input [N, 3, 32, 32], output [N, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(3, 8), Block(8, 16), Block(16, 16))
        self.classifier = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, [N, classes]."""
        pooled = self.features(image).mean(dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def tiny() -> Tiny:
    """The network of the catalog entry `tiny`."""
    return Tiny()
