"""What is computed otherwise on a CPU because it is faster there, or keeps less memory.

Elsewhere the plain operators run. Each is chosen in one line where it is used: attention with dropout in
transformer.py, long convolutions in token_conv.py. What training on a CPU asks of the C library is in
d2v/training/memory.py.

N rows, T tokens, H heads, d width of a head, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Kernels from here on are faster as a row of pixels (19 of 768 channels in 16 groups: 1.6 times), shorter ones are not.
LONG_KERNEL = 16


def convolve_as_pixels(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv` over tokens, computed on an image of one row, channels last in memory: (N, T, C_in) -> (N, T', C)."""
    row = x.transpose(1, 2)[:, :, None]  # (N, C_in, 1, T)
    weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
    y = F.conv2d(row, weight, conv.bias, padding=(0, int(conv.padding[0])), groups=conv.groups)  # (N, C, 1, T')
    return y[:, :, 0].transpose(1, 2)


class DroppedProduct(torch.autograd.Function):
    """dropout(weights) @ v, which keeps what was dropped as booleans.

    The dropped weights are computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Weights (N, H, T, T) and values (N, H, T, d) -> (N, H, T, d) in the values' precision."""
        dropped, kept = torch.native_dropout(weights, dropout, True)
        ctx.save_for_backward(weights, kept, v)
        ctx.dropout = dropout
        return dropped.to(v.dtype) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """By the weights and the values."""
        weights, kept, v = ctx.saved_tensors
        dropped = weights * kept / (1 - ctx.dropout)
        by_dropped = (gradient @ v.transpose(-2, -1)).to(weights.dtype)
        by_weights = torch.ops.aten.native_dropout_backward(by_dropped, kept, 1 / (1 - ctx.dropout))
        return by_weights, dropped.to(v.dtype).transpose(-2, -1) @ gradient, None
