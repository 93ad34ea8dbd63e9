"""Response normalisation as the papers define it, and initial weights, for the networks of 2012 and 2014."""

import torch
from torch import Tensor, nn


class LocalResponseNorm(nn.LocalResponseNorm):
    """Divides each value of [N, C, H, W] by `(k + alpha * s) ** beta`.

    `s` is the sum of squares over the `size` channels around it, fewer at the edges (Krizhevsky 2012, section 3.3,
    whose constants are the defaults). torch and ONNX use the mean instead of the sum, so that their `alpha`, the
    attribute of this layer, is `size` times the argument.
    """

    def __init__(self, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__(size, alpha=alpha * size, beta=beta, k=k)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        if not torch.onnx.is_in_onnx_export():
            return super().forward(input)
        # torch exports a chain of nine operators; ONNX's own LRN runs in half the time or less.
        normalised = torch.onnx.ops.symbolic(
            "LRN",
            (input,),
            {"size": self.size, "alpha": self.alpha, "beta": self.beta, "bias": self.k},
            dtype=input.dtype,
            shape=input.shape,
        )
        assert isinstance(normalised, Tensor)
        return normalised


def initialise(network: nn.Module) -> None:
    """Initialise every convolution and linear layer so that values neither grow nor vanish through ReLUs.

    Weights are normal with variance 2 / fan-in (He et al. 2015, Delving Deep into Rectifiers), biases zero.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
