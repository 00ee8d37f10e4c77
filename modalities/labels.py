"""Labels of a data set: class names from the training split, numbers by those names elsewhere, or numbers to be regressed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from d2v.finetune import Labelled
from d2v.scores import classification, regression
from d2v.validation import Split

REGRESSION, CLASSES = "regression", "single_label_classification"


class Opened(NamedTuple):
    """The training samples with their labels, class names if there are classes, and the splits that are scored."""

    train: Any  # a modality's Samples
    indices: np.ndarray  # (N,) of the samples that are trained on
    labels: np.ndarray  # (len(train),) classes or numbers
    names: list[str] | None
    splits: dict[str, Split]


def open_splits(data: Any, seed: int, make: Callable[[str], Any]) -> Opened:
    """The splits that `data` names, by `make(split)`; without a validation split, data.validation_share of train is held out.

    ValueError: as `make`; labels that are missing, or of no use; a label of another split that train does not have.
    """
    train = make(data.split)
    names, labels = learn(train, data.label, numbers=data.regression)
    indices, splits = np.arange(len(train)), {}
    if data.validation_split:
        samples = make(data.validation_split)
        splits["validation"] = Split(samples, np.arange(len(samples)), encode(samples, data.label, names, data.validation_split))
    elif data.validation_share:
        order = np.random.default_rng((seed, 0x5A11D)).permutation(len(train))
        count = max(1, round(data.validation_share * len(train)))
        indices, held = np.sort(order[count:]), np.sort(order[:count])
        splits["validation"] = Split(train, held, labels[held])
    if data.test_split:
        samples = make(data.test_split)
        splits["test"] = Split(samples, np.arange(len(samples)), encode(samples, data.label, names, data.test_split))
    return Opened(train, indices, labels, names, splits)


def check(data: Any) -> None:
    """ValueError: a share that makes no sense, or that has no effect."""
    if not 0 <= data.validation_share < 1:
        raise ValueError(f"data.validation_share is {data.validation_share}; it must be at least 0 (nothing is held out) and below 1")
    if data.validation_share and data.validation_split:
        raise ValueError(f"data.validation_share {data.validation_share} and data.validation_split {data.validation_split!r}: give one of them")


def learn(samples: Any, column: str, *, numbers: bool) -> tuple[list[str] | None, np.ndarray]:
    """Class names and the class of each sample, or None and its number. ValueError: no such column, or nothing to be learned from it."""
    values = _column(samples, column)
    if numbers:
        return None, _numbers(values, column, "train")
    if values.dtype.kind == "f" and (values != np.round(values)).any():
        raise ValueError(f"data.label {column!r} holds fractions such as {values[values != np.round(values)][0]}; set data.regression=true")
    names = _names(values, samples.classes)
    known = samples.classes or [str(value) for value in np.unique(values)]
    if len(set(names)) < 2:
        raise ValueError(f"data.label {column!r} has one value, {names[0]!r}; there is nothing to tell apart")
    if len(set(names)) == len(names):
        raise ValueError(f"data.label {column!r} has another value for each of {len(names)} samples, such as {names[0]!r}; is it the class?")
    return known, _codes(names, known, column, "train")


def encode(samples: Any, column: str, names: list[str] | None, split: str) -> np.ndarray:
    """The classes of another split by the names of the training split, or its numbers. ValueError: no such column, or a value that is no class."""
    values = _column(samples, column)
    return _numbers(values, column, split) if names is None else _codes(_names(values, samples.classes), names, column, split)


def _column(samples: Any, column: str) -> np.ndarray:
    try:
        return samples.column(column)
    except ValueError as error:
        raise ValueError(f"data.label is {column!r}: {error}") from None


def _numbers(values: np.ndarray, column: str, split: str) -> np.ndarray:
    try:
        found = values.astype(np.float32)
    except ValueError:
        found = np.full(len(values), np.nan)
    if not np.isfinite(found).all():
        raise ValueError(
            f"data.label {column!r} of split {split!r} does not hold numbers, as data.regression=true needs: {values[~np.isfinite(found)][0]!r}"
        )
    return found


def _names(values: np.ndarray, classes: list[str] | None) -> list[str]:
    """The name of each value: numbers of a column that knows its classes are places among them."""
    if classes is None or values.dtype.kind not in "iu":
        return [str(value) for value in values]
    return [classes[value] if 0 <= value < len(classes) else str(value) for value in values]


def _codes(names: list[str], known: list[str], column: str, split: str) -> np.ndarray:
    code = {name: number for number, name in enumerate(known)}
    unseen = sorted({name for name in names if name not in code})
    if unseen:
        few = ", ".join(map(repr, unseen[:5]))
        raise ValueError(f"data.label {column!r} of split {split!r} holds {few}, unseen in training; its classes are {', '.join(known[:20])}")
    return np.array([code[name] for name in names], dtype=np.int64)


def labelled(opened: Opened, batches: Any, save_preprocessor: Callable) -> Labelled:
    """What a run of classification or regression trains on and is scored by."""
    names = opened.names
    head = {"problem_type": REGRESSION, "num_labels": 1}
    if names is not None:
        head = {"problem_type": CLASSES, "id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def score(outputs: list[np.ndarray], labels) -> dict[str, float]:
        logits = np.stack(outputs)
        return regression(logits[:, 0], np.asarray(labels)) if names is None else classification(logits, np.asarray(labels))

    def rows(split: Split, outputs: list[np.ndarray]) -> list[dict]:
        ids = [split.samples.ids[index] for index in split.indices]
        if names is None:
            return [{"id": i, "label": float(y), "prediction": float(x[0])} for i, y, x in zip(ids, split.labels, outputs, strict=True)]
        return [_row(i, names[y], names[int(x.argmax())], x) for i, y, x in zip(ids, split.labels, outputs, strict=True)]

    return Labelled(
        batches=batches,
        splits=opened.splits,
        head=head,
        score=score,
        metric="pearson" if names is None else "accuracy",
        rows=rows,
        classes=names,
        save_preprocessor=save_preprocessor,
    )


def _row(identifier: str, label: str, prediction: str, logits: np.ndarray) -> dict:
    """One line of a predictions file; the probability is the prediction's."""
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return {"id": identifier, "label": label, "prediction": prediction, "probability": round(float(shares.max() / shares.sum()), 6)}
