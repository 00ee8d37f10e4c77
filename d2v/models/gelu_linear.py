"""A linear layer of a GELU that does not keep the GELU's output, the widest tensor of a block, for the backward pass.

I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GeluLinear(torch.autograd.Function):
    """linear(gelu(x)); the GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(..., I), (O, I), (O,) -> (..., O) in the weight's precision."""
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x).to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """By x, the weight and the bias, each where it is asked for."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (n, O)
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = torch.ops.aten.gelu_backward((gradient @ weight).to(x.dtype), x)
        if ctx.needs_input_grad[1]:
            by_weight = rows.T @ F.gelu(x).to(weight.dtype).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            by_bias = rows.sum(dim=0)
        return by_x, by_weight, by_bias


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear(F.gelu(x), weight, bias)`, (..., I) -> (..., O), under autocast too.

    Without a gradient it is just that.
    """
    if not torch.is_grad_enabled():
        return F.linear(F.gelu(x), weight, bias)
    if torch.is_autocast_enabled(x.device.type):  # an autograd.Function casts nothing in its backward pass
        precision = torch.get_autocast_dtype(x.device.type)
        weight, bias = weight.to(precision), bias.to(precision)
    return _GeluLinear.apply(x, weight, bias)
