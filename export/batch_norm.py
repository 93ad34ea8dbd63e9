"""Batch-norm statistics of untrained networks: with the initial ones a deep network is chaotic."""

import numpy as np
import torch
from torch import nn

from models.build import ServedNetwork
from service.common.types import Batch


def calibrate_batch_norm(served: ServedNetwork, images: Batch) -> int:
    """Set mean and variance of each batch norm from one pass over `images` and their mirrors; returns their number.

    Then every layer sees inputs of about zero mean and unit variance, as in a trained network.
    """
    norms = [module for module in served.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average: of one pass, its statistics
        norm.train()
    with torch.inference_mode():
        served(torch.from_numpy(np.concatenate([images, images[:, :, ::-1]])))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return len(norms)
