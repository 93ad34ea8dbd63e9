"""A network that tests export and run within a second; its answers mean nothing."""

from torch import Tensor, nn


class TinyBlock(nn.Sequential):
    """Convolution 3x3 with stride 2, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Tiny(nn.Module):
    """Three blocks, global average pooling, one linear layer. Input [N, 3, 32, 32], output logits [N, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(TinyBlock(3, 8), TinyBlock(8, 16), TinyBlock(16, 16))
        self.classifier = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.features(image).mean(dim=(2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def tiny() -> Tiny:
    """The network of the catalog entry `tiny`."""
    return Tiny()
