"""Losses as pure functions that return sums in float32.

n predictions, D width.
"""

import math

import torch.nn.functional as F
from torch import Tensor

SCALES = {"sqrt": lambda dim: 1 / math.sqrt(dim), "mean": lambda dim: 1 / dim, "sum": lambda dim: 1.0}


def regression(prediction: Tensor, target: Tensor, beta: float, scale: str) -> Tensor:
    """Sum over predictions (n, D) of smooth L1 with `beta` (0: the squared error), scaled over channels as `scale` says (a key of SCALES).

    data2vec 1.0 (arXiv 2202.03555) equation 3; speech divides the sum over channels by sqrt(D), text by nothing, images by D.
    """
    prediction, target = prediction.float(), target.float()
    squared = beta == 0
    error = F.mse_loss(prediction, target, reduction="sum") if squared else F.smooth_l1_loss(prediction, target, reduction="sum", beta=beta)
    return error * SCALES[scale](prediction.shape[-1])
