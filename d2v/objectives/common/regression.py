"""Regression of teacher layers: targets, the loss, and the spread of both.

Targets: normalise each of the top K layers, average them, normalise the average; all in float32.
B samples, T tokens, D width, n predictions. Source: data2vec (arXiv 2202.03555) section 3.3; the order of the norms is
its code's.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.training.distributed import all_sum, pooled, world_size
from d2v.types import Pooled

EPS = 1e-5


def instance_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each channel of each sample over its own tokens, (B, T, D); padded tokens do not count."""
    if padding is None:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    else:
        data = (~padding)[..., None].to(x.dtype)  # (B, T, 1)
        count = data.sum(dim=1, keepdim=True)
        mean = (x * data).sum(dim=1, keepdim=True) / count
        variance = ((x - mean).square() * data).sum(dim=1, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + EPS)


def layer_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each token over its channels, (B, T, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def group_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each sample over its tokens and channels jointly, (B, T, D); padded tokens do not count."""
    if padding is None:
        return F.layer_norm(x, x.shape[-2:], eps=EPS)
    data = (~padding)[..., None].to(x.dtype)
    count = data.sum(dim=(1, 2), keepdim=True) * x.shape[-1]
    mean = (x * data).sum(dim=(1, 2), keepdim=True) / count
    variance = ((x - mean).square() * data).sum(dim=(1, 2), keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + EPS)


def batch_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each channel over all tokens of the batches of all processes, (B, T, D); padded tokens do not count.

    fairseq's is over those of each process, padded ones too. A micro-batch is normalised by itself.
    """
    data = torch.ones(x.shape[:2], device=x.device) if padding is None else (~padding).to(x.dtype)  # (B, T)
    data = data[..., None]
    count = all_sum(data.sum())
    mean = all_sum((x * data).sum(dim=(0, 1))) / count  # (D,)
    variance = all_sum(((x - mean).square() * data).sum(dim=(0, 1))) / count
    return (x - mean) * torch.rsqrt(variance + EPS)


NORMS = {"instance": instance_norm, "layer": layer_norm, "group": group_norm, "batch": batch_norm}


def normed(x: Tensor, norms: list[str], padding: Tensor | None = None) -> Tensor:
    """(B, T, D) in float32 after the norms of these names, keys of NORMS, in their order."""
    x = x.float()
    for name in norms:
        x = NORMS[name](x, padding)
    return x


def mean_of_layers(
    layers: list[Tensor], layer_norms: list[str], final_norms: list[str], padding: Tensor | None = None
) -> Tensor:
    """Targets (B, T, D) from the top K layers, each (B, T, D). `*_norms` are keys of NORMS, applied in their order."""
    total = None
    for layer in layers:
        layer = normed(layer, layer_norms, padding)
        total = layer if total is None else total + layer
    assert total is not None, "no teacher layers"
    return normed(total / len(layers), final_norms, padding)


def layers_side_by_side(
    layers: list[Tensor], layer_norms: list[str], final_norms: list[str], padding: Tensor | None = None
) -> Tensor:
    """Targets (B, T, K * D): each of the top K layers (B, T, D), with all norms of its own, after one another."""
    return torch.cat([normed(layer, [*layer_norms, *final_norms], padding) for layer in layers], dim=-1)


TARGETS = {"mean": mean_of_layers, "layers": layers_side_by_side}


SCALES = {"sqrt": lambda dim: 1 / math.sqrt(dim), "mean": lambda dim: 1 / dim, "sum": lambda dim: 1.0}


def regression_loss(
    prediction: Tensor, target: Tensor, beta: float, scale: str, weights: Tensor | None = None
) -> Tensor:
    """Sum over predictions (n, D) of smooth L1 with `beta` (0: the squared error), scaled over channels as `scale` says
    (a key of SCALES); with `weights` (n,) each counts as much.

    data2vec 1.0 (arXiv 2202.03555) equation 3; speech divides the sum over channels by sqrt(D), text by nothing, images
    by D.
    """
    prediction, target = prediction.float(), target.float()
    loss = F.mse_loss if beta == 0 else partial(F.smooth_l1_loss, beta=beta)
    if weights is None:
        error = loss(prediction, target, reduction="sum")
    else:
        error = (loss(prediction, target, reduction="none").sum(dim=1) * weights).sum()
    return error * SCALES[scale](prediction.shape[-1])


def channel_std(x: Tensor) -> Tensor | Pooled:
    """Mean over channels of the standard deviation over the rows of all ranks: (N, D) -> (); nan for fewer than two.

    mean_d sqrt(var_d + 1e-6) with the unbiased variance. Two passes (the mean first, then squares around it), because
    the difference of sums of squares loses everything when the mean is large; what ranks' means differ is such a
    difference, and of several ranks in float64.
    """
    return pooled(_moments(x.detach().float()), _std)


def spread_of(x: Tensor) -> Tensor | Pooled:
    """normalised_std of the rows of all ranks: of their directions, about 1 if isotropic, 0 if collapsed or of one row.

    (N, D) -> ().
    """
    return pooled(_moments(F.normalize(x.detach().float(), dim=1)), _spread)


def _moments(x: Tensor) -> Tensor:
    """The sums that _std and _spread take over ranks, (N, D) -> (1 + 3 * D,)."""
    count, total = torch.full((1,), float(len(x)), device=x.device), x.sum(dim=0)  # (1,), (D,)
    squares = (x - total / count.clamp(min=1)).square().sum(dim=0)  # (D,)
    if world_size() > 1:
        count, total, squares = count.double(), total.double(), squares.double()
    return torch.cat([count, total, squares, total.square() / count.clamp(min=1)])


def _squares(sums: Tensor) -> Tensor:
    """Around the mean of all ranks, (1 + 3 * D,) -> (D,)."""
    count, (total, squares, of_totals) = sums[0], sums[1:].chunk(3)
    return squares + (of_totals - total.square() / count.clamp(min=1)).clamp(min=0)  # alone the second is 0


def _std(sums: Tensor) -> Tensor:
    return (_squares(sums) / (sums[0] - 1).clamp(min=0) + 1e-6).sqrt().mean().float()


def _spread(sums: Tensor) -> Tensor:
    squares = _squares(sums)
    return (squares / (sums[0] - 1).clamp(min=1)).sqrt().mean().float() * len(squares) ** 0.5
