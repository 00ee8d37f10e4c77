"""Convolution along tokens -> layer norm over channels, without weights -> GELU: a layer of speech's positions and of
1-d decoders.

N rows, T tokens, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models import cpu
from d2v.models.transformer import is_plain


def convolved(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """(N, T, C_in) -> (N, T, C); `conv` pads with half its kernel, and the token too many that an even kernel gives is
    dropped."""
    y = convolve(conv, x)[:, : x.shape[1]]
    return F.gelu(F.layer_norm(y, y.shape[-1:]))


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv` over tokens, (N, T, C_in) -> (N, T', C)."""
    if x.device.type == "cpu" and is_plain(conv, nn.Conv1d) and conv.kernel_size[0] >= cpu.LONG_KERNEL:
        return cpu.convolve_as_pixels(conv, x)
    return conv(x.transpose(1, 2)).transpose(1, 2)
