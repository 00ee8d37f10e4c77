"""What a method remembers from step to step: persistent buffers, changed in place after the loss, equal on all
processes.

N rows of the global batch, n of a process, K rows of a queue or prototypes, P width of the embeddings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.training.distributed import all_mean


class Queue(nn.Module):
    """The last K keys (MoCo, arXiv 1911.05722): unit rows (K, P), at first random ones.

    The oldest are replaced first.
    """

    rows: Tensor
    position: Tensor  # () of the oldest row, where the next goes

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("position", torch.tensor(0))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest rows by `keys` (N, P) of the global batch, N at most K.

        A key that is not finite leaves its place as it was.
        """
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.rows)  # (N,)
        _write_finite(self.rows, places, keys)
        self.position.copy_((self.position + len(keys)) % len(self.rows))


class MemoryBank(nn.Module):
    """A moving average of each sample's embedding (InstDisc, arXiv 1805.01978): rows (samples, P), unit once they were
    seen."""

    rows: Tensor

    def __init__(self, num_samples: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        bound = (3 / dim) ** 0.5  # rows of unit length, in the mean
        self.register_buffer("rows", torch.empty(num_samples, dim).uniform_(-bound, bound))

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Moves the rows of samples `indices` (N,), each there once, towards their `embeddings` (N, P).

        Not towards what is not finite.
        """
        moved = F.normalize(self.rows[indices].lerp(embeddings, 1 - self.momentum), dim=1)
        _write_finite(self.rows, indices, moved)


class Center(nn.Module):
    """The moving average of what the teacher says of a batch, first zero (DINO, arXiv 2104.14294, equation 4)."""

    value: Tensor

    def __init__(self, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Moves towards the mean over the rows (n, K) of all ranks, which have as many each.

        A mean that is not finite changes nothing.
        """
        mean = all_mean(rows.float().mean(dim=0))
        self.value.lerp_(torch.where(mean.isfinite().all(), mean, self.value), 1 - self.momentum)


def _write_finite(rows: Tensor, places: Tensor, values: Tensor) -> None:
    """One bad batch, whose step the loop skips, would otherwise spoil every loss that reads these rows."""
    finite = values.isfinite().all(dim=1, keepdim=True)
    rows[places] = torch.where(finite, values, rows[places])
