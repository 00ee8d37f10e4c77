"""What shows collapse: spread, effective rank and neighbours of features; pure functions.

N rows (tokens or pooled samples), D width, C classes, Q queries, G samples of a bank.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values: (N, D) -> [1, min(N, D)].

    0 if no feature varies. It depends on N / D: compare readings over the same samples only. Roy and Vetterli, "The
    effective rank", EUSIPCO 2007.
    """
    sigma = _centred_singular_values(features)  # (min(N, D),)
    if not sigma.any():
        return 0.0
    return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def rankme(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): (N, D) -> [1, min(N, D)].

    exp of the entropy of the singular values' shares, 1e-7 added to each; features are not centred.
    """
    sigma = torch.linalg.svdvals(features.detach().double())
    return float(torch.special.entr(sigma / sigma.sum() + 1e-7).sum().exp())


def singular_values(features: Tensor) -> Tensor:
    """Singular values of the features' covariance (over N), largest first: (N, D) -> (min(N, D),).

    A cliff in them is dimensional collapse.
    """
    return _centred_singular_values(features).square() / len(features)


def _centred_singular_values(features: Tensor) -> Tensor:
    features = features.detach().double()  # (N, D)
    sigma = torch.linalg.svdvals(features - features.mean(dim=0))
    # What a float32 network's rounding leaves of constant features would else read as full rank.
    return torch.where(sigma > torch.finfo(torch.float32).eps * features.norm(), sigma, 0.0)


def normalised_std(features: Tensor) -> Tensor:
    """Spread of the directions: mean_d std of L2-normalised rows, times sqrt(D). (N, D) -> ().

    About 1 if isotropic, 0 if collapsed or of one row.
    """
    if len(features) < 2:
        return torch.zeros((), device=features.device)
    return F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance, to the power `alpha`, of positive pairs: two (N, D) of unit rows -> ().

    Wang and Isola, arXiv 2005.10242.
    """
    return (x - y).norm(dim=1).pow(alpha).mean()


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean Gaussian potential over all pairs of unit rows: (N, D) -> ().

    About -2t + 2t^2/D if uniform, 0 if collapsed.
    """
    return torch.pdist(x).square().mul(-t).exp().mean().log()


def health(features: dict[str, Tensor]) -> dict[str, float]:
    """Metrics of pooled features by name: {name: (N, D)} -> {name_rank, name_std, health_samples}."""
    metrics: dict[str, float] = {}
    for name, x in features.items():
        metrics[f"{name}_rank"] = effective_rank(x)
        metrics[f"{name}_std"] = float(normalised_std(x))
        metrics["health_samples"] = len(x)  # the verdict's standard error needs it
    return metrics


def knn_votes(
    queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, *, same: Callable | None = None
) -> Tensor:
    """Scores of each class by weighted cosine k-NN: (Q, D), (G, D), (G,) integers from 0 -> (Q, C).

    The score of a class is the sum of exp(cosine / temperature) over those of the k nearest that have it (InstDisc,
    arXiv 1805.01978), as a share of the nearest one's. `same(rows of queries)` -> (rows, G) bool marks what may not be
    a neighbour: the query itself, or samples of its speaker. Evaluations and health checks both vote by this.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    one_hot = F.one_hot(labels.long()).float()  # (G, C)
    scores = []
    for rows in torch.arange(len(queries), device=queries.device).split(1024):  # bounds the similarity matrix
        similarity = queries[rows] @ bank.T  # (rows, G)
        if same is not None:
            # Weight exp(-inf) = 0, should fewer than k be left.
            similarity = similarity.masked_fill(same(rows), -math.inf)
        top, nearest = similarity.topk(min(k, len(bank)), dim=1)  # (rows, k)
        # Weights by those of the nearest: no temperature makes them overflow. None may be left: then 0, as before.
        weights = ((top - top[:, :1].clamp(min=-1)) / temperature).exp()  # (rows, k)
        scores.append((weights.unsqueeze(2) * one_hot[nearest]).sum(dim=1))
    return torch.cat(scores)


def knn_leave_one_out(
    features: Tensor,
    labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    groups: Tensor | None = None,
    *,
    centre: bool = True,
) -> float:
    """Accuracy in [0, 1] of k-NN among the samples themselves, each without itself or, with `groups`, its group.

    `features` (N, D), `labels` and `groups` (N,) integers. Centred by default: a large common mean brings every cosine
    near 1, which buries the neighbours but is no collapse. ValueError: all samples are of one group.
    """
    groups = torch.arange(len(features), device=features.device) if groups is None else groups.to(features.device)
    if len(groups) < 2 or bool((groups == groups[0]).all()):
        raise ValueError(
            f"k-NN has no neighbours: all {len(groups)} samples are of one group; give at least two groups"
        )
    labels = labels.to(features.device)
    features = features.float() - features.float().mean(dim=0) if centre else features

    def same_group(rows: Tensor) -> Tensor:
        return groups[rows].unsqueeze(1) == groups  # (rows, N)

    votes = knn_votes(features, features, labels, k, temperature, same=same_group)  # (N, C)
    return float((votes.argmax(dim=1) == labels).float().mean())
