"""Fixed positions of tokens in a grid or along a sequence.

T tokens, D width.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def sincos(rows: int, columns: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions (T, D) of data2vec 2.0 and MAE (arXiv 2111.06377).

    Sine and cosine of the column, then of the row.
    """
    with torch.inference_mode(False):
        rates = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))  # (D / 4,)
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        across, down = column.reshape(-1, 1) * rates, row.reshape(-1, 1) * rates  # (T, D / 4) each
        return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1).float()


@lru_cache(maxsize=8)
def along(num_tokens: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions (T, D) of a sequence (arXiv 1706.03762, section 3.5): sines, then cosines, of falling rates."""
    with torch.inference_mode(False):
        rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim / 2))  # (D / 2,)
        angles = torch.arange(num_tokens, device=device)[:, None] * rates  # (T, D / 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def fixed(num_tokens: int, grid: tuple[int, int] | None, dim: int, device: torch.device) -> Tensor:
    """Positions (T, D) of tokens that lie in a grid of rows and columns, or, without one, in a sequence."""
    if grid is not None and grid[0] * grid[1] == num_tokens:
        return sincos(*grid, dim, device)
    return along(num_tokens, dim, device)
