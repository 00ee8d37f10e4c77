"""Heads that sit beside the student and are not averaged; what task models put on top of an encoder.

B samples, T content tokens, D width, C classes, V words.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.batch_norm import GroupedBatchNorm
from d2v.models.transformer import linear_map, through

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "none": lambda x: x}


def perceptron(widths: list[int], *, norm: bool = False) -> nn.Sequential:
    """Linear layers from width to width with GELU, and if `norm` a batch norm before it, between them."""
    parts: list[nn.Module] = []
    for inner, outer in pairwise(widths[:-1]):
        parts += [nn.Linear(inner, outer), *([GroupedBatchNorm(outer)] if norm else []), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1]))


def projector(
    widths: list[int], *, norm: bool = True, bias: bool = False, last: str = "linear", groups: int = 1
) -> nn.Sequential:
    """Linear layers from width to width, with batch norm if `norm`, and ReLU, between them:
    (B, widths[0]) -> (B, widths[-1]).

    `bias` is that of the hidden linear layers. `last`: what ends it: "linear" (with a bias), "bare" (without one),
    "norm" (a batch norm without weights after a bare one; MoCo v3, SimSiam) or "scale" (a batch norm with a weight and
    no bias; SimCLR). `groups`: of the batch norms.
    """
    parts: list[nn.Module] = []
    for inner, outer in pairwise(widths[:-1]):
        parts += [
            nn.Linear(inner, outer, bias=bias),
            GroupedBatchNorm(outer, groups=groups) if norm else nn.Identity(),
            nn.ReLU(),
        ]
    parts.append(nn.Linear(widths[-2], widths[-1], bias=last == "linear"))
    if last in ("norm", "scale"):
        parts.append(GroupedBatchNorm(widths[-1], groups=groups, affine=last == "scale"))
    if last == "scale":
        assert isinstance(parts[-1], GroupedBatchNorm)
        parts[-1].register_parameter("bias", None)
    return nn.Sequential(*parts)


def mean_of_tokens(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, T, D) and (B, T) -> (B, D); what lies in padded tokens, nan included, does not count."""
    if padding is None:
        return x.mean(dim=1)
    count = (~padding).sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    return x.masked_fill(padding.unsqueeze(2), 0).sum(dim=1) / count


class ClassificationHead(nn.Module):
    """Norm (or none), a dense layer with its activation (or none), and the linear layer to the classes.

    There is dropout before each linear layer.
    """

    def __init__(
        self,
        dim: int,
        num_labels: int,
        *,
        norm_eps: float | None = None,
        dense_dim: int = 0,
        activation: str = "tanh",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, norm_eps)
        self.dense = nn.Linear(dim, dense_dim) if dense_dim else None
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dense_dim or dim, num_labels)

    def init_weights(self, scale: float | None) -> None:
        """N(0, 0.02), that of the classes times `scale`, or, if None, Xavier's uniform; biases zero."""
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()
        if self.dense is not None:
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
        if scale is None:
            nn.init.xavier_uniform_(self.out.weight)
        else:
            nn.init.normal_(self.out.weight, std=0.02 * scale)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., C)."""
        x = self.norm(x)
        if self.dense is not None:
            x = self.activation(self.dense(self.dropout(x)))
        return self.out(self.dropout(x))


class WordHead(nn.Module):
    """BERT's and RoBERTa's: linear, GELU, norm, then products with the words' own vectors, and a bias of each word."""

    def __init__(self, dim: int, word_dim: int, num_words: int, *, norm_eps: float, init_std: float):
        """`dim` is that of the tokens, `word_dim` that of the words' vectors."""
        super().__init__()
        self.dense = nn.Linear(dim, word_dim)
        self.norm = nn.LayerNorm(word_dim, norm_eps)
        self.bias = nn.Parameter(torch.zeros(num_words))
        nn.init.normal_(self.dense.weight, std=init_std)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, vocabulary: Tensor) -> Tensor:
        """Tokens (n, D) and words (V, W) -> logits (n, V)."""
        return linear_map(self.norm(F.gelu(through(self.dense, x))), vocabulary, self.bias)
