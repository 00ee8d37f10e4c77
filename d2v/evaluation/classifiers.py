"""Frozen features -> classes: k-NN, a linear probe, logistic regression, and folds over groups; pure functions.

N samples of a test set, G of a bank or training set, B of a batch, D width, C classes, L learning rates.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.training.collapse import knn_votes


def zscore(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All arrays (N, D) by the mean and standard deviation of the first; a feature that is constant there becomes 0."""
    mean, scale = moments(train)
    return [((x - mean) * scale).astype(np.float32) for x in (train, *others)]


def moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> mean (D,), and 1 / standard deviation (D,), 0 of a feature that is constant."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    return mean, np.where(std > 1e-6 * np.maximum(1e-6, np.abs(mean)), 1 / np.maximum(std, 1e-30), 0)


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
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    probe: Probe,
    device: str | torch.device = "cpu",
) -> tuple[float, float]:
    """Test accuracy in [0, 1] of multinomial logistic regression on z-scored features, and the learning rate chosen.

    All learning rates are trained at once on train less its holdout, the holdout picks one, and that one is trained
    again on all of train: the test set chooses nothing. (G, D), (G,), (N, D), (N,).
    """
    varies = (train != train[:1]).any(axis=0)  # the others are zero once z-scored: most of a bag of tokens, say
    x, test_x = zscore(train[:, varies], test[:, varies])
    weights, best = fit_probe(x, train_labels, int(max(train_labels.max(), test_labels.max())) + 1, probe, device)
    queries, labels = torch.from_numpy(test_x).to(device), torch.from_numpy(test_labels).to(device)
    return float(_accuracies(weights, queries, labels)[0]), best


def fit_probe(
    train: np.ndarray, train_labels: np.ndarray, num_classes: int, probe: Probe, device: str | torch.device = "cpu"
) -> tuple[Tensor, float]:
    """A linear classifier's weights with its bias last, (1, C, D + 1), and its learning rate, chosen by a holdout.

    `train` is z-scored, (G, D); its labels (G,).
    """
    x, y = torch.from_numpy(train).to(device), torch.from_numpy(train_labels).to(device)
    out, rest = (torch.from_numpy(rows).to(device) for rows in holdout(len(x), probe.holdout, probe.seed))
    weights = _fit(x[rest], y[rest], num_classes, probe.lrs, probe)
    best = probe.lrs[int(_accuracies(weights, x[out], y[out]).argmax())]
    return _fit(x, y, num_classes, [best], probe), best


def holdout(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are held out, at least one, and the others, at least one."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(share * count)), count - 1)
    return order[:held], order[held:]


def _fit(x: Tensor, y: Tensor, num_classes: int, lrs: list[float], probe: Probe, batch_size: int = 4096) -> Tensor:
    """Weights of one classifier per learning rate, bias last: (G, D), (G,) -> (L, C, D + 1). Adam, cosine to 0.

    Adam, because the features' covariance is ill-conditioned and a plain gradient would leave its small directions
    untrained.
    """
    rates = torch.tensor(lrs, device=x.device).reshape(-1, 1, 1)
    weights = torch.zeros(len(lrs), num_classes, x.shape[1] + 1, device=x.device)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    x = F.pad(x, (0, 1), value=1.0)  # (G, D + 1)
    generator = np.random.default_rng((probe.seed, 1))
    for step in range(probe.steps):
        features, labels = x, y
        if len(x) > batch_size:
            rows = torch.from_numpy(generator.integers(len(x), size=batch_size)).to(x.device)
            features, labels = x[rows], y[rows]
        logits = (features @ weights.flatten(0, 1).T).unflatten(1, (len(lrs), num_classes))
        # a processor multiplies numbers below 1e-38 a hundred times slower, and 1e-20 moves no weight
        errors = logits.softmax(dim=-1).clamp(min=1e-20)  # (B, L, C)
        errors[torch.arange(len(labels), device=x.device), :, labels] -= 1  # the cross entropy's gradient by the logits
        gradient = (errors.flatten(1).T @ features / len(labels)).view_as(weights)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.01)
        decay = 0.5 * (1 + np.cos(np.pi * step / probe.steps))
        update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        weights -= decay * rates * update
    return weights


def _accuracies(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(L, C, D + 1), (N, D), (N,) -> (L,)."""
    return (logits_of(weights, x).argmax(dim=-1) == y).float().mean(dim=1)


def logits_of(weights: Tensor, x: Tensor) -> Tensor:
    """(L, C, D + 1), (N, D) -> (L, N, C)."""
    return torch.einsum("bd,lcd->lbc", F.pad(x, (0, 1), value=1.0), weights)


def logistic_regression(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    cs: list[float],
    held: float,
    seed: int,
) -> tuple[float, float]:
    """Test accuracy in [0, 1] of scikit-learn's logistic regression on z-scored features, and its C.

    A holdout of train chooses it, and it is trained again on all of train. (G, D), (G,), (N, D), (N,).
    """
    x, test_x = zscore(train, test)
    out, rest = holdout(len(x), held, seed)
    scores = [fit_logistic(x[rest], train_labels[rest], c).score(x[out], train_labels[out]) for c in cs]
    best = cs[int(np.argmax(scores))]
    return float(fit_logistic(x, train_labels, best).score(test_x, test_labels)), best


def fit_logistic(x: np.ndarray, labels: np.ndarray, c: float):
    """scikit-learn's logistic regression (L-BFGS), fitted. ValueError: one class only."""
    # Imported here: it takes seconds, and most evaluations do without.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Of a large C on features that separate: its accuracy is settled long before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=1000).fit(x, labels)


def probe_other_groups(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, probe: Probe, device: str | torch.device = "cpu"
) -> float:
    """Accuracy in [0, 1] over all samples, each by a probe trained without its group, or its tenth of them."""
    names = np.random.default_rng(probe.seed).permutation(np.unique(groups))
    correct = 0.0
    for number in range(min(10, len(names))):
        out = np.isin(groups, names[number::10])
        correct += linear_probe(features[~out], labels[~out], features[out], labels[out], probe, device)[0] * out.sum()
    return correct / len(labels)
