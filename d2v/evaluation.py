"""k-NN and linear probe on frozen features, beside a random init and the raw input, so that an evaluation can fail.

B samples of a batch, T content tokens, D width, N samples of a split, G of a bank, C classes, L learning rates.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.heads import mean_of_tokens
from d2v.monitors import knn_leave_one_out, knn_votes
from d2v.types import View


@dataclass
class EvaluateConfig:
    """Which samples, which features, and which scores."""

    path: Any = ""  # where the labelled data is; "": data.path
    train_split: str = "train"
    test_split: str = "test"  # "": none; scores within train then: neighbours leave one out, probes in folds
    max_train: int = 0  # this many samples, drawn with `seed`; 0: all
    max_test: int = 0
    layer: str = "last"  # "last" (trunk output), "local" (before the trunk), a block from 1 to depth (its end), or "all"
    label: str = "label"  # column to be predicted
    group: str = ""  # column, e.g. the speaker: adds scores within train where neighbours and probes see other groups only
    zscore: bool = True  # of k-NN's features, with train's statistics; probes always
    k: list[int] = field(default_factory=lambda: [20])
    temperature: float = 0.07
    probe: bool = True
    probe_steps: int = 300
    probe_lrs: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1])
    probe_holdout: float = 0.1  # share of train that chooses the learning rate
    random_seeds: int = 3  # random inits of the same architecture to compare with
    raw: bool = True  # also the raw-input baseline
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        """ValueError: a value that no evaluation can use."""
        for name, good, allowed in (
            ("k", bool(self.k) and min(self.k) > 0, "one or more positive numbers"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("probe_steps", self.probe_steps > 0, "a positive number"),
            ("probe_lrs", bool(self.probe_lrs) and min(self.probe_lrs) > 0, "one or more positive numbers"),
            ("probe_holdout", 0 < self.probe_holdout < 1, "between 0 and 1"),
            ("batch_size", self.batch_size > 0, "a positive number"),
            ("random_seeds", self.random_seeds >= 0, "0 or more"),
            ("layer", self.layer in ("last", "local", "all") or self.layer.isdecimal(), '"last", "local", "all" or the number of a block'),
        ):
            if not good:
                raise ValueError(f"evaluate.{name} is {getattr(self, name)!r}; it must be {allowed}")


class Samples(Protocol):
    """What an evaluation needs of a modality's samples."""

    lengths: np.ndarray | None
    raw_name: str
    report: Any

    def __len__(self) -> int: ...
    def column(self, name: str) -> np.ndarray: ...
    def view(self, indices) -> View: ...
    def raw(self, indices) -> np.ndarray: ...


class Split(NamedTuple):
    """The samples of one split that are scored, with their labels."""

    samples: Samples
    indices: np.ndarray  # (N,) into samples
    labels: np.ndarray  # (N,) integers from 0
    groups: np.ndarray | None  # (N,) integers


class Row(NamedTuple):
    """One line of the table: percentages by the score's name; a mean and its spread where several encoders are behind it."""

    model: str
    layer: str
    dim: int
    scores: dict[str, float]
    spread: dict[str, float] = {}  # noqa: RUF012 a NamedTuple's default, never changed


def label_splits(train: Samples, test: Samples | None, config: EvaluateConfig) -> tuple[Split, Split | None]:
    """Splits with labels as integers, subsampled. ValueError: a column that is missing, one class only, or classes that train has not."""
    chosen = _choose(len(train), config.max_train, config.seed)
    classes, labels = np.unique(train.column(config.label)[chosen], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"evaluate.label={config.label!r} has one value in split {config.train_split!r}: {classes[0]!r}; choose another column")
    groups = np.unique(train.column(config.group)[chosen], return_inverse=True)[1] if config.group else None
    if groups is not None and groups.max() == 0:
        raise ValueError(f"evaluate.group={config.group!r} has one value in split {config.train_split!r}: no sample has neighbours of other groups")
    train_split = Split(train, chosen, labels, groups)
    if test is None:
        return train_split, None
    chosen = _choose(len(test), config.max_test, config.seed)
    values = test.column(config.label)[chosen]
    unseen = sorted(set(values.tolist()) - set(classes.tolist()))
    if unseen:
        few = ", ".join(map(str, unseen[:5]))
        remedy = "raise evaluate.max_train" if config.max_train else "check evaluate.train_split and evaluate.label"
        raise ValueError(f"{len(unseen)} classes of split {config.test_split!r} are not in {config.train_split!r} ({few}); {remedy}")
    return train_split, Split(test, chosen, np.searchsorted(classes, values), None)


def _choose(count: int, limit: int, seed: int) -> np.ndarray:
    if limit <= 0 or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


@torch.no_grad()
def pooled_features(
    encoder, samples: Samples, batch_size: int, device: str | torch.device = "cpu", *, indices: np.ndarray | None = None, layer: str = "all"
) -> dict[str, np.ndarray]:
    """Mean over content tokens in eval mode: layer's name -> (N, D) in the order of `indices` (None: all samples).

    Names: "local" (tokens before the trunk), "1".. (the end of each block) and "last" (trunk output, with the final norm if there is one).
    Batches hold samples of similar length. `layer` keeps one of them only. ValueError: the encoder has no such layer.
    """
    indices = np.arange(len(samples)) if indices is None else np.asarray(indices)
    lengths = np.zeros(len(indices)) if samples.lengths is None else samples.lengths[indices]
    order = np.argsort(lengths, kind="stable")
    training = encoder.training
    encoder.eval()
    parts: dict[str, list[np.ndarray]] = {}
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        view = samples.view(indices[rows]).to(device)
        local = encoder.embed(view)  # (B, T, D)
        features = encoder(view, tokens=local, layers="block")
        tokens = {"local": local, **{str(i): x for i, x in enumerate(features.layers, 1)}, "last": features.x}
        if layer not in ("all", *tokens):
            raise ValueError(f"evaluate.layer is {layer!r}; this encoder has {', '.join(tokens)}")
        for name in tokens if layer == "all" else [layer]:
            parts.setdefault(name, []).append(mean_of_tokens(tokens[name].float(), view.padding).cpu().numpy())
    encoder.train(training)
    return {name: np.concatenate(arrays)[np.argsort(order)] for name, arrays in parts.items()}


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


def evaluate_features(
    train_x: np.ndarray, test_x: np.ndarray | None, train: Split, test: Split | None, config: EvaluateConfig, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Percentages by name for features of the two splits; `test` None: scores within train only."""
    probe = Probe(config.probe_lrs, config.probe_steps, config.probe_holdout, config.seed)
    scores = {}
    near = zscore(train_x)[0] if config.zscore else train_x
    if test is not None and test_x is not None:
        near_test = zscore(train_x, test_x)[1] if config.zscore else test_x
        for k in config.k:
            scores[f"k-NN {k}"] = 100 * knn(near, train.labels, near_test, test.labels, k, config.temperature, device)
        if config.probe:
            scores["linear"] = 100 * linear_probe(train_x, train.labels, test_x, test.labels, probe, device)[0]
    if train.groups is not None or test is None:
        name = f"other {config.group}" if config.group else "leave one out"
        groups = np.arange(len(near)) if train.groups is None else train.groups
        x, y, g = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (near, train.labels, groups))
        for k in config.k:
            scores[f"k-NN {k}, {name}"] = 100 * knn_leave_one_out(x, y, k, config.temperature, g, centre=False)
        if config.probe:
            name = f"other {config.group}" if config.group else "10 folds"
            scores[f"linear, {name}"] = 100 * probe_other_groups(train_x, train.labels, groups, probe, device)
    return scores


def evaluate_encoder(name: str, encoder, train: Split, test: Split | None, config: EvaluateConfig, device: str | torch.device = "cpu") -> list[Row]:
    """One row for each layer that `config.layer` asks for."""
    near = pooled_features(encoder, train.samples, config.batch_size, device, indices=train.indices, layer=config.layer)
    far = {} if test is None else pooled_features(encoder, test.samples, config.batch_size, device, indices=test.indices, layer=config.layer)
    if config.layer == "all" and np.array_equal(near["last"], near[str(len(near) - 2)]):
        del near["last"]  # no final norm: the last block's end once more
    return [Row(name, layer, x.shape[1], evaluate_features(x, far.get(layer), train, test, config, device)) for layer, x in near.items()]


def evaluate_raw(train: Split, test: Split | None, config: EvaluateConfig, device: str | torch.device = "cpu") -> Row:
    """The row of the modality's raw-input baseline: no network."""
    near = train.samples.raw(train.indices).astype(np.float32)
    far = None if test is None else test.samples.raw(test.indices).astype(np.float32)
    return Row(train.samples.raw_name, "raw", near.shape[1], evaluate_features(near, far, train, test, config, device))


def average(name: str, runs: list[list[Row]]) -> list[Row]:
    """Rows of the same layers from several encoders -> their mean, with the standard deviation between encoders as the spread."""
    rows = []
    for layer in zip(*runs, strict=True):
        same = list(layer)
        values = {score: np.array([row.scores[score] for row in same]) for score in same[0].scores}
        means = {score: float(v.mean()) for score, v in values.items()}
        spread = {score: float(v.std(ddof=1)) for score, v in values.items()} if len(same) > 1 else {}
        rows.append(Row(name, same[0].layer, same[0].dim, means, spread))
    return rows


def table(rows: list[Row]) -> str:
    """A table in Markdown, one line a row."""
    names = list(dict.fromkeys(score for row in rows for score in row.scores))
    cells = [["features", "layer", "dim", *names]]
    for row in rows:
        spread = {score: f" ±{value:.1f}" for score, value in row.spread.items()}
        scores = [f"{row.scores[score]:.1f}{spread.get(score, '')}" if score in row.scores else "-" for score in names]
        cells.append([row.model, row.layer, str(row.dim), *scores])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
