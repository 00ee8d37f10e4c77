"""Convolution along tokens -> layer norm over channels, without weights -> GELU: a layer of speech's positions and of the 1-d decoders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG = 16  # kernels from here on are faster as a row of pixels on a CPU (19 of 768 channels in 16 groups: 1.6 times), shorter ones are not


def convolved(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """(N, T, C_in) -> (N, T, C); `conv` pads with half its kernel, and the token too many that an even kernel gives is dropped."""
    y = convolve(conv, x)[:, : x.shape[1]]
    return F.gelu(F.layer_norm(y, y.shape[-1:]))


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv` over tokens, (N, T, C_in) -> (N, T', C)."""
    if x.device.type != "cpu" or conv.kernel_size[0] < LONG:
        return conv(x.transpose(1, 2)).transpose(1, 2)
    row, weight = x.transpose(1, 2)[:, :, None], conv.weight[:, :, None]  # (N, C_in, 1, T), channels last in memory
    y = F.conv2d(
        row,
        weight.contiguous(memory_format=torch.channels_last),
        conv.bias,
        padding=(0, *conv.padding),
        groups=conv.groups,
    )
    return y[:, :, 0].transpose(1, 2)
