"""What methods remember between steps: modules whose persistent buffers learn without gradients, in place and equally on every rank.

n rows of a process, K prototypes.
"""

import torch
from torch import Tensor, nn

from d2v.dist import all_mean


class Center(nn.Module):
    """The moving average of what the teacher says of a batch, zero at the start (DINO, arXiv 2104.14294, equation 4)."""

    value: Tensor

    def __init__(self, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Moves towards the mean over the rows (n, K) of all ranks, which have as many each; a mean that is not finite changes nothing."""
        mean = all_mean(rows.float().mean(dim=0))
        self.value.lerp_(torch.where(mean.isfinite().all(), mean, self.value), 1 - self.momentum)
