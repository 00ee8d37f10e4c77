"""What is computed otherwise on a CPU because it is faster there, or keeps less memory.

Elsewhere the plain operators run. Each is chosen in one line where it is used: products and attention with dropout in
transformer.py, long convolutions in token_conv.py. What training on a CPU asks of the C library is in
d2v/training/memory.py.

N rows, T tokens, H heads, d width of a head, C channels, I and O widths of a linear layer's input and output.
"""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Kernels from here on are faster as a row of pixels (19 of 768 channels in 16 groups: 1.6 times), shorter ones are not.
LONG_KERNEL = 16
# Products of fewer multiplications are as fast by either library.
LARGE_PRODUCT = 2**20
# oneDNN makes code for each shape that it is asked for, and keeps that of the last 1,024 shapes: up to 11 MB each for
# layers of 768, gigabytes where batches differ in length. It and torch, which keeps some too, read this at their first
# use, on any processor. A step of fixed shapes has 20 to 150.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "192")


@cache
def is_amd_with_avx512() -> bool:
    """Processors for which torch's library of products (MKL) takes code for AVX2, and oneDNN code for AVX-512.

    On two cores of Zen 5 that is 210 and 450 GFLOP/s in float32. On Intel's both take AVX-512.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        maker = platform.processor()
    return "AuthenticAMD" in maker


def takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `product` asks oneDNN: large products of plain float32 tensors, where it is the faster one.

    Not where code is traced or transformed, which is to hold torch's own operators; nor without
    `torch.backends.mkldnn.enabled`.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or not _is_plain(x, weight):
        return False
    fits = x.ndim > 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1]) and not torch.is_autocast_enabled("cpu")
    large = x.numel() * len(weight) >= LARGE_PRODUCT
    return bool(fits and large and is_amd_with_avx512() and torch.backends.mkldnn.enabled and not _is_transformed())


def _is_plain(*tensors: Tensor) -> bool:
    """Whether all are float32, none of a class of its own (fake, distributed, quantised), and none sparse."""
    return all(
        type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.layout == torch.strided for x in tensors
    )


def _is_transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp) or forward-mode differentiation is at work."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by the faster library, (..., I), (O, I), (O,) -> (..., O); for where no gradient is recorded."""
    if takes_onednn(x, weight, bias):
        bias = None if bias is None else bias.contiguous()
        return torch.ops.mkldnn._linear_pointwise(_laid_out(x), _laid_out(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _laid_out(x: Tensor) -> Tensor:
    """x by rows or by columns: of other layouts, as of an expanded gradient, oneDNN's product is a slow loop."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


def product_of_rows(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b, (n, O) and (n, I) -> (O, I); oneDNN copies its first argument, so that is the narrower one."""
    return product(a.T, b.T) if a.shape[1] <= b.shape[1] else product(b.T, a.T).T


class Linear(torch.autograd.Function):
    """`F.linear` whose three products are `product`'s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., I), (O, I), (O,) -> (..., O)."""
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """By x, the weight and the bias, each where it is asked for."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (n, O)
        by_x = product(gradient, weight.T) if ctx.needs_input_grad[0] else None
        by_weight = product_of_rows(rows, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, rows.sum(dim=0) if ctx.needs_input_grad[2] else None


def convolve_as_pixels(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """`conv` over tokens, computed on an image of one row, channels last in memory: (N, T, C_in) -> (N, T', C)."""
    row = x.transpose(1, 2)[:, :, None]  # (N, C_in, 1, T)
    weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
    y = F.conv2d(row, weight, conv.bias, padding=(0, int(conv.padding[0])), groups=conv.groups)  # (N, C, 1, T')
    return y[:, :, 0].transpose(1, 2)


def draw_kept(shape: torch.Size, share: int) -> Tensor:
    """Booleans of a shape, each False in `share` of 65,536 cases.

    torch draws a double for each entry, one after the other; here 64 random bits serve four entries.
    """
    words = torch.randint(-(2**63), 2**63 - 1, (-(-shape.numel() // 4),), device="cpu")
    return words.view(torch.int16)[: shape.numel()].view(shape) >= share - 2**15


class DroppedProduct(torch.autograd.Function):
    """dropout(weights) @ v, which keeps what was dropped as booleans.

    The dropped weights are computed again in the backward pass. The rate is rounded to 1 / 65,536.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Weights (N, H, T, T) and values (N, H, T, d) -> (N, H, T, d) in the values' precision."""
        share = min(round(dropout * 2**16), 2**16 - 1)
        kept, scale = draw_kept(weights.shape, share), 2**16 / (2**16 - share)
        ctx.save_for_backward(weights, kept, v)
        ctx.scale = scale
        return _drop(weights, kept, scale).to(v.dtype) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """By the weights and the values."""
        weights, kept, v = ctx.saved_tensors
        dropped = _drop(weights, kept, ctx.scale)
        by_dropped = (gradient @ v.transpose(-2, -1)).to(weights.dtype)
        return _drop(by_dropped, kept, ctx.scale), dropped.to(v.dtype).transpose(-2, -1) @ gradient, None


def _drop(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """What is kept of x, times `scale`; a product of bytes is twice as fast as one of booleans."""
    return (x * kept.view(torch.uint8)).mul_(scale)
