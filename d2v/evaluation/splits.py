"""The labelled samples of an evaluation: chosen from their split, with classes and groups as integers. N samples."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2v.evaluation.class_names import class_names, complete, in_order, left_out, numbered
from d2v.evaluation.config import EvaluateConfig
from d2v.protocols import Samples
from d2v.split_names import ORDERED, lacking


class EvaluationSplit(NamedTuple):
    """The samples of one split that are scored, with their labels."""

    samples: Samples
    indices: np.ndarray  # (N,) into samples
    labels: np.ndarray  # (N,) integers from 0; empty where evaluate.label is ""
    groups: np.ndarray | None  # (N,) integers
    notes: Sequence[str] = ()  # what is said of samples without a label

    def some(self, places: np.ndarray) -> "EvaluationSplit":
        """Those at some of the N places."""
        groups = None if self.groups is None else self.groups[places]
        labels = self.labels[places] if len(self.labels) else self.labels
        return EvaluationSplit(self.samples, self.indices[places], labels, groups, self.notes)


def labelled_data(data: Any, path: Any, label: str) -> Any:
    """The modality's settings of data at `path`, whose classes are those of the column `label`, if it is not empty."""
    if label and "label" in [field.name for field in dataclasses.fields(data)]:
        return dataclasses.replace(data, path=path, label=label)
    return dataclasses.replace(data, path=path)


def label_splits(
    train: Samples, test: Samples | None, config: EvaluateConfig
) -> tuple[EvaluationSplit, EvaluationSplit | None]:
    """Splits with labels as integers, subsampled.

    Samples without a label are left out. ValueError: a column that is missing or holds no classes, one class only, or
    classes that train has not.
    """
    if not config.label:
        chosen = _choose(np.arange(len(train)), config.max_train, config.seed)
        if test is None:
            return _unlabelled(train, chosen), None
        return _unlabelled(train, chosen), _unlabelled(
            test, _choose(np.arange(len(test)), config.max_test, config.seed)
        )
    names, notes = _names(train, config.label, config.train_split)
    chosen = _choose(_with_name(names), config.max_train, config.seed)
    of_chosen = [names[index] for index in chosen]
    classes = in_order(of_chosen, train.classes)
    if len(classes) < 2:
        raise ValueError(
            f"evaluate.label={config.label!r} has one value in split {config.train_split!r}: "
            f"{classes[0]!r}; choose another column"
        )
    labels = numbered(of_chosen, classes)
    groups = None
    if config.group:
        groups = np.unique(_complete(train, config.group)[chosen], return_inverse=True)[1]
    if groups is not None and groups.max() == 0:
        raise ValueError(
            f"evaluate.group={config.group!r} has one value in split {config.train_split!r}: "
            "no sample has neighbours of other groups"
        )
    labelled = EvaluationSplit(train, chosen, labels, groups, notes)
    return labelled, None if test is None else _label_test(test, classes, names, config)


def _names(
    samples: Samples, column: str, split: str, known: Collection[str] | None = None
) -> tuple[list[str | None], list[str]]:
    """The class of each sample by name, and what is said of those without one. ValueError: no classes."""
    try:
        names = class_names(samples, column, known)
    except ValueError as error:
        raise ValueError(f"evaluate.label={column!r}, split {split!r}: {error}") from None
    if None not in names:
        return names, []
    return names, left_out(names, samples.ids, f"evaluate.label={column!r}", f"split {split!r}")


def _with_name(names: list[str | None]) -> np.ndarray:
    return np.array([index for index, name in enumerate(names) if name is not None], dtype=np.int64)


def _complete(samples: Samples, column: str) -> np.ndarray:
    try:
        return complete(samples, column)
    except ValueError as error:
        raise ValueError(f"evaluate.group is {column!r}: {error}; evaluate.group='' takes none") from None


def _unlabelled(samples: Samples, chosen: np.ndarray) -> EvaluationSplit:
    return EvaluationSplit(samples, chosen, np.zeros(0, dtype=np.int64), None)


def _label_test(
    test: Samples, classes: list[str], of_train: list[str | None], config: EvaluateConfig
) -> EvaluationSplit:
    """The test split by the classes of train. ValueError: it has others."""
    names, notes = _names(test, config.label, config.test_split, {name for name in of_train if name is not None})
    chosen = _choose(_with_name(names), config.max_test, config.seed)
    of_chosen = [names[index] for index in chosen]
    unseen = in_order(set(of_chosen) - set(classes))
    if unseen:
        few = ", ".join(unseen[:5])
        remedy = "raise evaluate.max_train" if config.max_train else "check evaluate.train_split and evaluate.label"
        if "[" in config.test_split and not config.max_train:
            remedy += f"; {ORDERED}"
        raise ValueError(
            f"{len(unseen)} classes of split {config.test_split!r} are not in {config.train_split!r} ({few}); {remedy}"
        )
    if not config.max_test:
        notes = notes + lacking(config.test_split, set(of_chosen), classes, "evaluate.test_split")
    return EvaluationSplit(test, chosen, numbered(of_chosen, classes), None, notes)


def _choose(rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` of the rows, sorted; all if the limit is 0 or does not bite."""
    if limit <= 0 or limit >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]
