"""Labels of a data set: classes, by names that the training split gives, or numbers; and the splits that are scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2v.finetuning.scores import classification, regression
from d2v.modalities.common.tables import in_order, number, written
from d2v.protocols import Batches, Labelled, ScoredSplit
from d2v.settings import setting

REGRESSION, CLASSES = "regression", "single_label_classification"
HELD_OUT = 0x5A11D  # sets the choice of held-out samples apart from the sampler's shuffles


@dataclass
class SplitConfig:
    """Which labelled samples choose the best model and which score it."""

    validation_split: str = setting("", "The split that chooses the best model.")
    validation_share: float = setting(
        0.0, "Share of the training split that is held out to choose the best model; 0: nothing is.", least=0, below=1
    )
    test_split: str = setting("", "The split that is scored once, at the end.")

    def check_splits(self) -> None:
        """ValueError: a share that has no effect."""
        if self.validation_share and self.validation_split:
            raise ValueError(
                f"data.validation_share {self.validation_share} and data.validation_split {self.validation_split!r}: "
                "give one of them"
            )


class Opened(NamedTuple):
    """The training samples with their labels, class names if there are classes, and the splits that are scored."""

    train: Any  # a modality's Samples
    indices: np.ndarray  # (N,) of the samples that are trained on
    labels: Sequence[Any]  # of each of `train`: classes, numbers, or codes of letters
    names: list[str] | None
    splits: dict[str, ScoredSplit]


def open_splits(data: Any, seed: int, make: Callable[[str], Any], *, group: str = "") -> Opened:
    """The labelled splits that `data` names.

    ValueError: as divide; labels that are missing, of no use, or of another split and not in train.
    """
    train, indices, parts = divide(data, seed, make, group=group)
    names, labels = learn(train, data.label, numbers=data.regression)
    splits = {}
    for name, (samples, rows) in parts.items():
        known = labels if samples is train else encode(samples, data.label, names, getattr(data, f"{name}_split"))
        splits[name] = ScoredSplit(samples, rows, known[rows])
    return Opened(train, indices, labels, names, splits)


def divide(
    data: Any, seed: int, make: Callable[[str], Any], *, group: str = ""
) -> tuple[Any, np.ndarray, dict[str, tuple[Any, np.ndarray]]]:
    """Training samples by `make(split)`, which are trained on, and (samples, which of them) of each scored split.

    Without a validation split, data.validation_share of train is held out, whole groups where `group` is a column; then
    no split that is scored keeps samples of a group that is trained on. ValueError: as `make`; no such column, or
    groups that leave nothing.
    """
    train = make(data.split)
    indices, parts = np.arange(len(train)), {}
    if data.validation_split:
        samples = make(data.validation_split)
        parts["validation"] = samples, np.arange(len(samples))
    elif data.validation_share:
        groups = _column(train, group, "group") if group else None
        held = _held_out(np.random.default_rng((seed, HELD_OUT)), len(train), data.validation_share, groups)
        indices = np.setdiff1d(indices, held)
        parts["validation"] = train, held
    if data.test_split:
        samples = make(data.test_split)
        parts["test"] = samples, np.arange(len(samples))
    if group:
        trained = _column(train, group, "group")[indices]
        for name, (samples, rows) in parts.items():
            kept = rows[~np.isin(_column(samples, group, "group")[rows], trained)]
            if not len(kept):
                raise ValueError(
                    f"data.group {group!r}: the {name} split has no sample of a group that is not trained on"
                )
            parts[name] = samples, kept
    return train, indices, parts


def _held_out(generator: np.random.Generator, count: int, share: float, groups: np.ndarray | None) -> np.ndarray:
    """Numbers of the samples that are held out, sorted: the share of them, or as many whole groups as reach it."""
    if groups is None:
        return np.sort(generator.permutation(count)[: max(1, round(share * count))])
    names, sizes = np.unique(groups, return_counts=True)
    order = generator.permutation(len(names))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), share * count)) + 1]
    if len(taken) == len(names):
        raise ValueError(
            f"data.validation_share {share} of {len(names)} groups leaves none to train on; the first is {names[0]!r}"
        )
    return np.flatnonzero(np.isin(groups, names[taken]))


def learn(samples: Any, column: str, *, numbers: bool) -> tuple[list[str] | None, np.ndarray]:
    """Class names and the class of each sample, or None and its number.

    ValueError: no such column, or nothing to be learned from it.
    """
    values = _column(samples, column)
    if numbers:
        return None, _numbers(values, column, "train")
    amounts = np.array([number(value) for value in values.tolist()])
    fractions = values[amounts != np.round(amounts)]
    if len(fractions) and (values.dtype.kind == "f" or np.isfinite(amounts).all()):
        fraction = fractions[0]
        raise ValueError(f"data.label {column!r} holds fractions such as {fraction}; set data.regression=true")
    names = _names(values, samples.classes)
    known = samples.classes or in_order(set(names))
    if len(set(names)) < 2:
        raise ValueError(f"data.label {column!r} has one value, {names[0]!r}; there is nothing to tell apart")
    if len(set(names)) == len(names):
        raise ValueError(
            f"data.label {column!r} has another value for each of {len(names)} samples, such as {names[0]!r}; "
            "is it the class?"
        )
    return known, _codes(names, known, column, "train")


def encode(samples: Any, column: str, names: list[str] | None, split: str) -> np.ndarray:
    """The classes of another split by the names of the training split, or its numbers if those are None.

    ValueError: no such column, or a value that is no class.
    """
    values = _column(samples, column)
    if names is None:
        return _numbers(values, column, split)
    return _codes(_names(values, samples.classes), names, column, split)


def _column(samples: Any, column: str, setting: str = "label") -> np.ndarray:
    try:
        return samples.column(column)
    except ValueError as error:
        raise ValueError(f"data.{setting} is {column!r}: {error}") from None


def _numbers(values: np.ndarray, column: str, split: str) -> np.ndarray:
    numbers = values
    if values.dtype.kind not in "biuf":
        numbers = np.array([number(value) for value in values.tolist()])
    numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        bad = values[~np.isfinite(numbers)][0]
        raise ValueError(
            f"data.label {column!r} of split {split!r} does not hold numbers, as data.regression=true needs: {bad!r}"
        )
    return numbers


def _names(values: np.ndarray, classes: list[str] | None) -> list[str]:
    """The name of each value: numbers of a column that knows its classes are places among them."""
    if classes is None or values.dtype.kind not in "iu":
        return [written(value) for value in values.tolist()]
    return [classes[value] if 0 <= value < len(classes) else str(value) for value in values]


def _codes(names: list[str], known: list[str], column: str, split: str) -> np.ndarray:
    code = {name: number for number, name in enumerate(known)}
    unseen = sorted({name for name in names if name not in code})
    if unseen:
        few = ", ".join(map(repr, unseen[:5]))
        raise ValueError(
            f"data.label {column!r} of split {split!r} holds {few}, unseen in training; "
            f"its classes are {', '.join(known[:20])}"
        )
    return np.array([code[name] for name in names], dtype=np.int64)


def labelled(opened: Opened, batches: Batches, save_preprocessor: Callable[[Path], None]) -> Labelled:
    """What a run of classification or regression trains on and is scored by."""
    names = opened.names
    return Labelled(
        batches=batches,
        training=ScoredSplit(opened.train, opened.indices, np.asarray(opened.labels)[opened.indices]),
        splits=opened.splits,
        head=_head(names),
        score=_score_numbers if names is None else _score_classes,
        metric="pearson" if names is None else "accuracy",
        rows=_number_rows if names is None else partial(_class_rows, names),
        classes=names,
        save_preprocessor=save_preprocessor,
    )


def _head(names: list[str] | None) -> dict[str, Any]:
    if names is None:
        return {"problem_type": REGRESSION, "num_labels": 1}
    by_name = {name: number for number, name in enumerate(names)}
    return {"problem_type": CLASSES, "id2label": dict(enumerate(names)), "label2id": by_name}


def _score_numbers(outputs: list[np.ndarray], labels: Sequence[Any]) -> dict[str, float]:
    return regression(np.stack(outputs)[:, 0], np.asarray(labels))


def _score_classes(outputs: list[np.ndarray], labels: Sequence[Any]) -> dict[str, float]:
    return classification(np.stack(outputs), np.asarray(labels))


def _number_rows(split: ScoredSplit, outputs: list[np.ndarray]) -> list[dict]:
    rows = []
    for index, label, output in zip(split.indices, split.labels, outputs, strict=True):
        rows.append({"id": split.samples.ids[index], "label": float(label), "prediction": float(output[0])})
    return rows


def _class_rows(names: list[str], split: ScoredSplit, outputs: list[np.ndarray]) -> list[dict]:
    """Lines of a predictions file; the probability is the prediction's."""
    rows = []
    for index, label, logits in zip(split.indices, split.labels, outputs, strict=True):
        shares = np.exp(logits.astype(np.float64) - logits.max())
        rows.append(
            {
                "id": split.samples.ids[index],
                "label": names[label],
                "prediction": names[int(logits.argmax())],
                "probability": round(float(shares.max() / shares.sum()), 6),
            }
        )
    return rows
