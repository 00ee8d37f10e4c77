"""Fixed positions of sines and cosines, of a sequence or a grid.

T tokens, D width.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def sincos(sizes: tuple[int, ...], dim: int, device: torch.device) -> Tensor:
    """Positions (T, D) of T tokens in a sequence, `sizes` (T,), or in a grid of `sizes` rows and columns.

    Sine and cosine of the column, then of the row, as in data2vec 2.0 and MAE (arXiv 2111.06377).
    """
    part = dim / (2 * len(sizes))
    # the cached tensor may first be asked for in inference and then be used in training
    with torch.inference_mode(False):
        rates = 10000.0 ** (-torch.arange(int(part), dtype=torch.float64, device=device) / part)
        places = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
        waves = []
        for place in reversed(places):
            angles = place.reshape(-1, 1) * rates  # (T, D / 2 or D / 4)
            waves += [angles.sin(), angles.cos()]
        return torch.cat(waves, dim=1).float()


def fixed(num_tokens: int, grid: tuple[int, int] | None, dim: int, device: torch.device) -> Tensor:
    """Positions (T, D) of tokens that lie in a grid of rows and columns, or, without one, in a sequence."""
    on_grid = grid is not None and grid[0] * grid[1] == num_tokens
    return sincos(grid if on_grid else (num_tokens,), dim, device)
