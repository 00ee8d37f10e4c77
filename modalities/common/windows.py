"""What is longer than a model reads at once, as windows that overlap; each token counts in one of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Tokens start to stop of the whole are read, first to last of them count."""

    start: int
    stop: int
    first: int
    last: int


def cut(length: int, size: int, overlap: float) -> list[Window]:
    """Windows of `size` tokens over `length`, the last moved back to end with it; one if it all fits.

    Neighbours share `overlap` of a window or more. What two share is divided in its middle; it is two tokens at least,
    so that no window's first or last counts where another begins or ends.
    """
    if length <= size:
        return [Window(0, length, 0, length)]
    hop = max(1, size - max(2, round(overlap * size)))
    starts = [*range(0, length - size, hop), length - size]
    borders = [0]
    for start, following in pairwise(starts):
        borders.append((start + size + following) // 2)
    borders.append(length)
    return [Window(starts[n], starts[n] + size, borders[n], borders[n + 1]) for n in range(len(starts))]


def counted(windows: Sequence[Window]) -> Tensor:
    """Which tokens of each window count, (B, T) bool; windows of one size."""
    starts = torch.tensor([window.start for window in windows])[:, None]  # (B, 1)
    first = torch.tensor([window.first for window in windows])[:, None]  # (B, 1)
    last = torch.tensor([window.last for window in windows])[:, None]  # (B, 1)
    places = starts + torch.arange(windows[0].stop - windows[0].start)  # (B, T)
    return (places >= first) & (places < last)
