"""What an encoder's frozen features are worth, beside a random init and the raw input, so that an evaluation can fail.

D width, N samples of a split.
"""

import numpy as np
import torch

from d2v.evaluation.classifiers import Probe, knn, linear_probe, probe_other_groups, zscore
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import pooled_features
from d2v.evaluation.splits import EvaluationSplit
from d2v.evaluation.table import Row
from d2v.training.collapse import knn_leave_one_out


def evaluate_features(
    train_x: np.ndarray,
    test_x: np.ndarray | None,
    train: EvaluationSplit,
    test: EvaluationSplit | None,
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Percentages by name for features (N, D) of the two splits; `test` None: scores within train only.

    ValueError: features that are not finite.
    """
    for x in (train_x, test_x):
        if x is not None and not np.isfinite(x).all():
            raise ValueError("features are not finite: the model is damaged, or its run diverged")
    scores = {}
    if test is not None and test_x is not None:
        scores |= _scores_of_test(train_x, test_x, train, test, config, device)
    if train.groups is not None or test is None:
        scores |= _scores_within_train(train_x, train, config, device)
    return scores


def probe_of(config: EvaluateConfig) -> Probe:
    """How an evaluation trains its linear probes."""
    return Probe(config.probe_lrs, config.probe_steps, config.probe_holdout, config.seed)


def _scores_of_test(
    train_x: np.ndarray,
    test_x: np.ndarray,
    train: EvaluationSplit,
    test: EvaluationSplit,
    config: EvaluateConfig,
    device: str | torch.device,
) -> dict[str, float]:
    """Percentages of test's samples, by neighbours and probes of train."""
    near, far = zscore(train_x, test_x) if config.zscore else (train_x, test_x)
    scores = {}
    for k in _neighbours(config.k, len(near)):
        scores[f"k-NN {k}"] = 100 * knn(near, train.labels, far, test.labels, k, config.temperature, device)
    if config.probe:
        accuracy, _ = linear_probe(train_x, train.labels, test_x, test.labels, probe_of(config), device)
        scores["linear"] = 100 * accuracy
    return scores


def _neighbours(wanted: list[int], there: int) -> list[int]:
    """How many vote: no more than `there` are."""
    return list(dict.fromkeys(min(k, there) for k in wanted))


def _scores_within_train(
    train_x: np.ndarray, train: EvaluationSplit, config: EvaluateConfig, device: str | torch.device
) -> dict[str, float]:
    """Percentages of train's samples, each without its group, or without itself where there are no groups."""
    knn_name, probe_name = "leave one out", "10 folds"
    if config.group:
        knn_name = probe_name = f"other {config.group}"
    near = zscore(train_x)[0] if config.zscore else train_x
    groups = np.arange(len(near)) if train.groups is None else train.groups
    x, y, g = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (near, train.labels, groups))
    scores = {}
    for k in _neighbours(config.k, len(near) - 1):
        scores[f"k-NN {k}, {knn_name}"] = 100 * knn_leave_one_out(x, y, k, config.temperature, g, centre=False)
    if config.probe:
        accuracy = probe_other_groups(train_x, train.labels, groups, probe_of(config), device)
        scores[f"linear, {probe_name}"] = 100 * accuracy
    return scores


def evaluate_encoder(
    name: str,
    encoder,
    train: EvaluationSplit,
    test: EvaluationSplit | None,
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
) -> list[Row]:
    """One row for each layer that `config.layer` asks for."""

    def pooled(split: EvaluationSplit) -> dict[str, np.ndarray]:
        return pooled_features(
            encoder, split.samples, config.batch_size, device, indices=split.indices, layer=config.layer
        )

    near = pooled(train)
    far = {} if test is None else pooled(test)
    if config.layer == "all" and np.array_equal(near["last"], near[list(near)[-2]]):
        del near["last"]  # no final norm: what comes before it once more
    rows = []
    for layer, x in near.items():
        scores = evaluate_features(x, far.get(layer), train, test, config, device)
        rows.append(Row(name, layer, x.shape[1], scores))
    return rows


def evaluate_raw(
    train: EvaluationSplit, test: EvaluationSplit | None, config: EvaluateConfig, device: str | torch.device = "cpu"
) -> Row:
    """The row of the modality's raw-input baseline: no network."""
    near = train.samples.raw(train.indices).astype(np.float32)
    far = None if test is None else test.samples.raw(test.indices).astype(np.float32)
    return Row(train.samples.raw_name, "raw", near.shape[1], evaluate_features(near, far, train, test, config, device))
