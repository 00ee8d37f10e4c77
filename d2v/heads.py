"""Heads that sit beside the student and are not averaged."""

from itertools import pairwise

from torch import Tensor, nn


def perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers from width to width with GELU between them."""
    parts: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        parts += [nn.Linear(inner, outer), nn.GELU()]
    return nn.Sequential(*parts[:-1])


class RegressionHead(nn.Module):
    """data2vec 1.0's predictor: one linear layer, or linear layers of twice the width with GELU between them and a linear back."""

    def __init__(self, dim: int, num_layers: int = 1):
        super().__init__()
        self.layers = perceptron([dim] + [2 * dim] * (num_layers - 1) + [dim])

    def init_weights(self, std: float, truncated: bool) -> None:
        """N(0, std), truncated at one std if asked; biases zero."""
        for linear in self.layers:
            if isinstance(linear, nn.Linear):
                if truncated:
                    nn.init.trunc_normal_(linear.weight, std=std, a=-std, b=std)
                else:
                    nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.layers(x)
