"""Contrastive losses as pure functions of cosines and of where each row's positive is.

Sums in float32 under any precision.

B samples of this process, N of all, M candidates of a row, n samples of the data, P width of the embeddings.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2v.objectives.common.regression import spread_of
from d2v.training.collapse import alignment, uniformity
from d2v.types import Pooled


def unit(x: Tensor) -> Tensor:
    """Rows of unit length in float32, (B, P) -> (B, P)."""
    return F.normalize(x.float(), dim=1)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Unit rows (B, P) with candidates (M, P), or with (B, M, P) of their own -> (B, M)."""
    # a product in bf16 is off by up to 0.4 %, and a temperature magnifies it
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.T if y.ndim == 2 else (y @ x.unsqueeze(2)).squeeze(2)


class _GradientNow(torch.autograd.Function):
    """`loss(x)`; its gradient by x is taken in the forward pass, and the backward pass only scales it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The loss, and what else `loss` returns, without gradients."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            total, *others = loss(leaf)
            with torch.autocast(x.device.type, enabled=False):  # as in any backward pass: else its products are in bf16
                (gradient,) = torch.autograd.grad(total, leaf)
        ctx.save_for_backward(gradient)
        others = [other.detach() for other in others]
        ctx.mark_non_differentiable(*others)
        return total.detach(), *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The gradient that was taken, times that of the loss."""
        (gradient,) = ctx.saved_tensors
        return scale * gradient, None


def with_gradient_now(loss: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """`loss(x)`, a scalar and what else it returns, with the gradient by x taken now: what it reads may then change.

    A queue or a bank changes in place before the backward pass, which would otherwise need a copy of it in each step.
    The copy can last longer than the products with it.
    """
    return _GradientNow.apply(x, loss) if torch.is_grad_enabled() else loss(x)


def against_queue(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (B, 1 + M) of queries (B, P) with their keys (B, P), first, and with all rows of a queue (M, P).

    And where the positives are, (B,).
    """
    positive = (query * key).sum(dim=1, keepdim=True)  # (B, 1)
    labels = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return torch.cat([positive, cosines(query, queue)], dim=1), labels


def within_batch(first: Tensor, second: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (2B, 2N) of both views of the samples `rows` (B,) with both views, (N, P) each, of all samples.

    And where the positives are, (2B,). A view's cosine with itself is -inf: it is no candidate (SimCLR, arXiv
    2002.05709, equation 1).
    """
    in_first, in_second = rows, rows + len(first)
    itself = torch.cat([in_first, in_second])  # (2B,)
    partner = torch.cat([in_second, in_first])  # (2B,)
    views = torch.cat([first, second])  # (2N, P)
    return cosines(views[itself], views).scatter(1, itself.unsqueeze(1), -math.inf), partner


def info_nce(similarity: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Sum over rows of -log softmax(similarity / temperature) at the positive (arXiv 1807.03748): (B, M), (B,) -> ().

    Over `within_batch` it is NT-Xent, over `against_queue` MoCo's loss; log M if all candidates are alike.
    """
    return F.cross_entropy(similarity / temperature, labels, reduction="sum")


def nt_xent(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of two (N, D) -> (): the mean over 2N rows, each of which must find its partner among all."""
    first, second = unit(x), unit(y)
    return info_nce(*within_batch(first, second, torch.arange(len(x), device=x.device)), temperature) / (2 * len(x))


def nce(log_probs: Tensor, num_samples: int) -> Tensor:
    """Sum over rows of noise-contrastive estimation's loss: log P of the positive, first, and of m noise samples,
    (B, 1 + m) -> ().

    -log P0 / (P0 + m/n + e) - sum_j log (m/n) / (Pj + m/n + e), e = 1e-7: InstDisc (arXiv 1805.01978) equations 5 to 7,
    and its code's e.
    """
    noise = (log_probs.shape[1] - 1) / num_samples
    both = math.log(noise + 1e-7)
    positive = F.softplus(both - log_probs[:, 0])  # softplus: P may overflow
    negative = F.softplus(log_probs[:, 1:] - both) + both - math.log(noise)
    return positive.sum() + negative.sum()


@torch.no_grad()
def describe(
    similarity: Tensor, labels: Tensor, query: Tensor, key: Tensor, again: Tensor | None = None
) -> dict[str, Tensor | Pooled]:
    """What contrastive methods show of similarities (B, M), and of positive pairs of unit rows, (B, P) each.

    `again` (B, M): candidates that are the positive once more, hence no negatives.
    """
    column = labels.unsqueeze(1)
    others = similarity.scatter(1, column, -math.inf)
    others = others if again is None else others.masked_fill(again, -math.inf)
    right = similarity.gather(1, column).squeeze(1) > others.amax(dim=1)  # (B,); false where all are alike
    return {
        "accuracy": right.float().mean(),
        "negatives": others.isfinite().sum(dim=1).float().mean(),
        "alignment": alignment(query, key),
        "uniformity": uniformity(query),
        "target_spread": spread_of(key),
        "prediction_spread": spread_of(query),
    }
