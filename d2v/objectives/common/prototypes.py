"""Methods whose outputs are shares of K prototypes: the head of DINO, its sharpened targets, SwAV's assignment, and the
loss between views.

B samples and n rows of this process, V views, D width of the encoder, P of the bottleneck, K prototypes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from d2v.models.heads import perceptron
from d2v.training.distributed import all_max, all_sum, pooled, world_size
from d2v.types import Pooled


def bottleneck(widths: list[int], *, norm: bool = False) -> nn.Sequential:
    """The MLP of DINO's head, before its vectors get unit length: GELU between layers, weights N(0, 0.02), biases 0."""
    mlp = perceptron(widths, norm=norm)
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return mlp


class PrototypeHead(nn.Module):
    """DINO's head (arXiv 2104.14294, appendix C): an MLP with GELU to unit vectors of width P, and their products with
    K directions."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        num_prototypes: int,
        *,
        frozen_gain: bool,
        norm: bool = False,
        num_outputs: int = 1,
    ):
        """`frozen_gain`: prototypes stay unit vectors, else each has a norm of its own, 1 at first.

        `num_outputs`: sets of prototypes.

        `norm`: batch norms in the MLP, which then takes rows (n, D).
        """
        super().__init__()
        self.mlp = bottleneck([dim, hidden_dim, hidden_dim, bottleneck_dim], norm=norm)
        self.prototypes = nn.ModuleList(
            weight_norm(nn.Linear(bottleneck_dim, num_prototypes, bias=False)) for _ in range(num_outputs)
        )
        layers: Any = self.prototypes
        for layer in layers:
            gain = layer.parametrizations.weight.original0  # (K, 1)
            nn.init.ones_(gain)
            gain.requires_grad_(not frozen_gain)

    def forward(self, x: Tensor, output: int = 0) -> Tensor:
        """(..., D) -> logits (..., K) of one set of prototypes."""
        return self.prototypes[output](F.normalize(self.mlp(x).float(), dim=-1))


def sharpened(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's targets: softmax((logits - center) / temperature), (..., K) and (K,) -> (..., K), float32."""
    return ((logits.float() - center) / temperature).softmax(dim=-1)


@torch.no_grad()
def sinkhorn(cosines: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Soft assignments (n, K), rows of sum 1, that use all prototypes nearly alike over the rows of all ranks (SwAV,
    arXiv 2006.09882, 3.1).

    `cosines` (n, K) are at most 1: less 1, no epsilon makes them overflow. The published code also divides by the
    total, and each sum by K or by the number of rows, all of which cancels.
    """
    return balanced(((cosines.float() - 1) / epsilon).exp(), iterations)


@torch.no_grad()
def sinkhorn_of_logits(logits: Tensor, temperature: float, iterations: int, padding: Tensor | None = None) -> Tensor:
    """The same of logits of any size, (n, ..., K), for each place between rows and prototypes by itself.

    Rows of `padding` (n, ...) take no part: they have none. Each prototype's largest logit of all ranks becomes 50,
    which Sinkhorn's algorithm does not see (CAPI, arXiv 2502.08769).
    """
    scaled = logits.float() / temperature
    if padding is not None:
        scaled = scaled.masked_fill(padding[..., None], -torch.inf)
    largest = all_max(scaled.amax(dim=0))  # (..., K)
    largest = largest.masked_fill(largest.isneginf(), 0.0)  # padding alone
    return balanced((scaled - largest + 50).exp(), iterations, 1e-8)


def balanced(shares: Tensor, iterations: int, eps: float = 0.0) -> Tensor:
    """Shares (n, ..., K) divided in turn by the sums of each prototype over the rows of all ranks and by those of each
    row, to which `eps` is added."""
    for _ in range(iterations):
        shares = shares / (all_sum(shares.sum(dim=0)) + eps)
        shares = shares / (shares.sum(dim=-1, keepdim=True) + eps)
    return shares


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-sum_k target_k log softmax(logits / temperature)_k: two (..., K) -> (...), float32."""
    return -(targets * (logits.float() / temperature).log_softmax(dim=-1)).sum(dim=-1)


def across_views(targets: list[Tensor], logits: list[Tensor], temperature: float) -> Tensor:
    """Sum over samples of the mean cross entropy over pairs of a target and another view's logits, (B, K) each -> ().

    Targets are those of the first views. With two of them and V views there are 2 (V - 1) pairs: 18 with eight local
    views. DINO (equation 3) and SwAV (over all crops, section 3.2) are the same here.
    """
    log_shares = [(rows.float() / temperature).log_softmax(dim=1) for rows in logits]
    terms = []
    for number, target in enumerate(targets):
        others = [rows for v, rows in enumerate(log_shares) if v != number]
        terms += [-(target * rows).sum() for rows in others]
    return torch.stack(terms).sum() / len(terms)


@torch.no_grad()
def usage(targets: Tensor, loss: Tensor) -> dict[str, Tensor | Pooled]:
    """How the targets (n, K) of all ranks use the prototypes, and what of their mean cross entropy `loss` () can be
    learned.

    `target_entropy`: mean over rows; 0 if one-hot, ln K if uniform. `divergence`: the rest of the loss, KL(target ||
    prediction).
    `mean_target_entropy`: of the mean row, ln K if all are used alike; `prototype_perplexity`: its exp.
    `prototypes_used`: first choices of some row.
    """
    entropy = torch.special.entr(targets).sum(dim=1).mean()
    mean = targets.mean(dim=0) / world_size()  # (K,) of this rank; ranks have as many rows each
    # bincount would wait for the device
    chosen = torch.zeros_like(targets[0]).scatter_(0, targets.argmax(dim=1), 1.0)  # (K,)
    return {
        "target_entropy": entropy,
        "divergence": loss.detach() - entropy,
        "mean_target_entropy": pooled(mean, _entropy),
        "prototype_perplexity": pooled(mean, lambda mean: _entropy(mean).exp()),
        "prototypes_used": pooled(chosen, lambda chosen: (chosen > 0).sum().float()),
    }


def _entropy(shares: Tensor) -> Tensor:
    """(K,) -> (), float32."""
    return torch.special.entr(shares).sum().float()
