"""Frozen features -> classes: k-NN, a linear probe, and folds over groups; pure functions.

N samples of a test set, G of a bank or training set, B of a batch, D width, C classes, L learning rates.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.monitors import knn_votes


def zscore(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All arrays (N, D) by the mean and standard deviation of the first; a feature that is constant there becomes 0."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std > 1e-6 * np.maximum(1e-6, np.abs(mean)), 1 / np.maximum(std, 1e-30), 0)
    return [((x - mean) * scale).astype(np.float32) for x in (train, *others)]


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> float:
    """Accuracy in [0, 1] of weighted cosine k-NN of test's samples among train's; (G, D), (G,), (N, D), (N,)."""
    bank, labels, queries = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (train, train_labels, test))
    votes = knn_votes(queries, bank, labels, k, temperature)  # (N, C)
    return float((votes.argmax(dim=1).cpu().numpy() == test_labels).mean())


class Probe(NamedTuple):
    """How linear probes are trained."""

    lrs: list[float]
    steps: int = 300
    holdout: float = 0.1
    seed: int = 0


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, probe: Probe, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """Test accuracy in [0, 1] of multinomial logistic regression on z-scored features, and the learning rate chosen.

    All learning rates are trained at once on train less its holdout, the holdout picks one, and that one is trained again on all of train:
    the test set chooses nothing. (G, D), (G,), (N, D), (N,).
    """
    varies = (train != train[:1]).any(axis=0)  # the others are zero once z-scored: most of a bag of tokens, say
    x, test_x = (torch.from_numpy(a).to(device) for a in zscore(train[:, varies], test[:, varies]))
    y, test_y = torch.from_numpy(train_labels).to(device), torch.from_numpy(test_labels).to(device)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    order = torch.from_numpy(np.random.default_rng(probe.seed).permutation(len(x))).to(device)
    held = min(max(1, round(probe.holdout * len(x))), len(x) - 1)
    out, rest = order[:held], order[held:]
    weights = _fit(x[rest], y[rest], num_classes, probe.lrs, probe)
    best = probe.lrs[int(_accuracies(weights, x[out], y[out]).argmax())]
    return float(_accuracies(_fit(x, y, num_classes, [best], probe), test_x, test_y)[0]), best


def _fit(x: Tensor, y: Tensor, num_classes: int, lrs: list[float], probe: Probe, batch_size: int = 4096) -> Tensor:
    """Weights of one classifier per learning rate, bias last: (G, D), (G,) -> (L, C, D + 1). AdamW without decay, cosine to 0.

    Adam, because the features' covariance is ill-conditioned and a plain gradient would leave its small directions untrained.
    """
    rates = torch.tensor(lrs, device=x.device).reshape(-1, 1, 1)
    weights = torch.zeros(len(lrs), num_classes, x.shape[1] + 1, device=x.device)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    x = F.pad(x, (0, 1), value=1.0)  # (G, D + 1)
    generator = np.random.default_rng((probe.seed, 1))
    for step in range(probe.steps):
        rows = slice(None) if len(x) <= batch_size else torch.from_numpy(generator.integers(len(x), size=batch_size)).to(x.device)
        features, labels = x[rows], y[rows]
        probabilities = torch.einsum("bd,lcd->lbc", features, weights).softmax(dim=-1)  # (L, B, C)
        probabilities[:, torch.arange(len(labels), device=x.device), labels] -= 1  # gradient of the cross entropy by the logits
        gradient = torch.einsum("lbc,bd->lcd", probabilities, features) / len(labels)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.01)
        decay = 0.5 * (1 + np.cos(np.pi * step / probe.steps))
        update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        weights -= decay * rates * update
    return weights


def _accuracies(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(L, C, D + 1), (N, D), (N,) -> (L,)."""
    logits = torch.einsum("bd,lcd->lbc", F.pad(x, (0, 1), value=1.0), weights)  # (L, N, C)
    return (logits.argmax(dim=-1) == y).float().mean(dim=1)


def probe_other_groups(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, probe: Probe, device: str | torch.device = "cpu") -> float:
    """Accuracy in [0, 1] over all samples, each by a probe trained without its group; more than ten groups are folded into ten."""
    names = np.random.default_rng(probe.seed).permutation(np.unique(groups))
    correct = 0.0
    for number in range(min(10, len(names))):
        out = np.isin(groups, names[number::10])
        correct += linear_probe(features[~out], labels[~out], features[out], labels[out], probe, device)[0] * out.sum()
    return correct / len(labels)
