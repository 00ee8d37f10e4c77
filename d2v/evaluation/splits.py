"""The labelled samples of an evaluation: chosen from their split, with classes and groups as integers. N samples."""

from typing import NamedTuple

import numpy as np

from d2v.evaluation.config import EvaluateConfig
from d2v.protocols import Samples


class EvaluationSplit(NamedTuple):
    """The samples of one split that are scored, with their labels."""

    samples: Samples
    indices: np.ndarray  # (N,) into samples
    labels: np.ndarray  # (N,) integers from 0; empty where evaluate.label is ""
    groups: np.ndarray | None  # (N,) integers

    def some(self, places: np.ndarray) -> "EvaluationSplit":
        """Those at some of the N places."""
        groups = None if self.groups is None else self.groups[places]
        labels = self.labels[places] if len(self.labels) else self.labels
        return EvaluationSplit(self.samples, self.indices[places], labels, groups)


def label_splits(
    train: Samples, test: Samples | None, config: EvaluateConfig
) -> tuple[EvaluationSplit, EvaluationSplit | None]:
    """Splits with labels as integers, subsampled.

    ValueError: a column that is missing, one class only, or classes that train has not.
    """
    chosen = _choose(len(train), config.max_train, config.seed)
    if not config.label:
        if test is None:
            return _unlabelled(train, chosen), None
        return _unlabelled(train, chosen), _unlabelled(test, _choose(len(test), config.max_test, config.seed))
    classes, labels = np.unique(train.column(config.label)[chosen], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"evaluate.label={config.label!r} has one value in split {config.train_split!r}: "
            f"{classes[0]!r}; choose another column"
        )
    groups = np.unique(train.column(config.group)[chosen], return_inverse=True)[1] if config.group else None
    if groups is not None and groups.max() == 0:
        raise ValueError(
            f"evaluate.group={config.group!r} has one value in split {config.train_split!r}: "
            "no sample has neighbours of other groups"
        )
    labelled = EvaluationSplit(train, chosen, labels, groups)
    return labelled, None if test is None else _label_test(test, classes, config)


def _unlabelled(samples: Samples, chosen: np.ndarray) -> EvaluationSplit:
    return EvaluationSplit(samples, chosen, np.zeros(0, dtype=np.int64), None)


def _label_test(test: Samples, classes: np.ndarray, config: EvaluateConfig) -> EvaluationSplit:
    """The test split by the classes of train, which are sorted. ValueError: it has others."""
    chosen = _choose(len(test), config.max_test, config.seed)
    values = test.column(config.label)[chosen]
    unseen = sorted(set(values.tolist()) - set(classes.tolist()))
    if unseen:
        few = ", ".join(map(str, unseen[:5]))
        remedy = "raise evaluate.max_train" if config.max_train else "check evaluate.train_split and evaluate.label"
        raise ValueError(
            f"{len(unseen)} classes of split {config.test_split!r} are not in {config.train_split!r} ({few}); {remedy}"
        )
    return EvaluationSplit(test, chosen, np.searchsorted(classes, values), None)


def _choose(count: int, limit: int, seed: int) -> np.ndarray:
    """Sorted numbers of `limit` of `count` samples; of all if the limit is 0 or does not bite."""
    if limit <= 0 or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])
