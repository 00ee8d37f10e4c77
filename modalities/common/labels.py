"""Labels of a data set: classes, by names that the training split gives, or numbers; and the splits that are scored."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2v.evaluation.class_names import complete, in_order, left_out, names_of, numbered
from d2v.finetuning.scores import classification, regression
from d2v.modalities.common.answers import REGRESSION, decimal, of_class, of_number
from d2v.modalities.common.tables import number
from d2v.protocols import Batches, Labelled, ScoredSplit, asked_by
from d2v.settings import setting
from d2v.split_names import has_split, lacking, share_rows, uses

CLASSES = "single_label_classification"
MOST_LOST = 1e-3  # of the spread of numbers, in float32
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
                "give one of them; data.validation_share=0 takes the split"
            )


class Opened(NamedTuple):
    """The training samples with their labels, class names if there are classes, and the splits that are scored."""

    train: Any  # a modality's Samples
    indices: np.ndarray  # (N,) of the samples that are trained on
    labels: Sequence[Any]  # of each of `train`: classes, numbers, or codes of letters
    names: list[str] | None
    splits: dict[str, ScoredSplit]
    notes: Sequence[str] = ()  # what is said of samples without a label, which are left out
    column: str = ""  # of the labels


def open_splits(data: Any, seed: int, make: Callable[[str], Any], *, group: str = "") -> Opened:
    """The labelled splits that `data` names.

    ValueError: as divide; labels that are missing, of no use, or of another split and not in train.
    """
    train, indices, parts = divide(data, seed, make, group=group)
    names, labels = learn(train, data.label, numbers=data.regression)
    trained, left_out_of_train = _with_label(train, indices, labels, data.label, "train")
    notes = [uses_of_splits(data, train.report.splits), *of_other_groups(train, parts, group), *left_out_of_train]
    splits = {}
    for name, (samples, rows) in parts.items():
        known = labels
        if samples is not train:
            split = getattr(data, f"{name}_split")
            known = encode(samples, data.label, names, split)
            _check_seen(known[rows], labels, names, data.label, split)
        rows, more = _with_label(samples, rows, known, data.label, name)
        splits[name] = ScoredSplit(samples, rows, known[rows])
        notes += more
        if names is not None and samples is train:
            notes += _held_out_alone(names, known[rows], labels[trained])
        if names is not None and samples is not train:
            notes += lacking(split, {*known[rows].tolist()}, {*labels[trained].tolist()}, f"data.{name}_split")
    return Opened(train, trained, labels, names, splits, notes, data.label)


def _held_out_alone(names: list[str], held: np.ndarray, trained: np.ndarray) -> list[str]:
    """What is said of classes all of whose samples are held out."""
    alone = [names[code] for code in np.setdiff1d(held, trained).tolist()]
    if not alone:
        return []
    said = ", ".join(map(repr, alone[:5])) + (", ..." if len(alone) > 5 else "")
    return [f"CAREFUL: data.validation_share holds out all samples of {said}: nothing is learnt of them"]


def uses_of_splits(data: Any, splits: Sequence[str]) -> str:
    """What becomes of each split that the data has, in a line."""
    held = f", but for {data.validation_share:.0%} of it, which chooses the best model" if data.validation_share else ""
    taken = {data.split: f"is trained on{held}"}
    if data.validation_split:
        taken.setdefault(data.validation_split, "chooses the best model")
    if data.test_split:
        taken.setdefault(data.test_split, "is scored at the end")
    more = []
    if not data.test_split and has_split(splits, "test"):
        more.append("data.test_split=test scores it at the end")
    if not data.validation_split and has_split(splits, "validation"):
        share = " data.validation_share=0" if data.validation_share else ""
        more.append(f"data.validation_split=validation{share} chooses the best model by it")
    return "; ".join([uses(splits, taken, more), *_leaks(data, splits)])


def _leaks(data: Any, splits: Sequence[str]) -> list[str]:
    """What is said of scored splits whose samples are trained on, or choose the model: their scores flatter."""
    if getattr(data, "group", ""):
        return []  # what is trained on is taken out of them, by whole groups
    said = []
    for name in ("validation_split", "test_split"):
        split = getattr(data, name)
        if split and share_rows(data.split, split, splits):
            said.append(f"CAREFUL: data.{name} {split!r} holds samples that are trained on (data.split {data.split!r})")
    if data.validation_split and data.test_split and share_rows(data.validation_split, data.test_split, splits):
        said.append(f"CAREFUL: data.test_split {data.test_split!r} holds samples that choose the best model")
    return said


def _with_label(
    samples: Any, rows: np.ndarray, labels: np.ndarray, column: str, split: str
) -> tuple[np.ndarray, list[str]]:
    """The rows whose label is neither -1 nor NaN, and what is said of the others. ValueError: no row has one."""
    has = np.isfinite(labels[rows]) if labels.dtype.kind == "f" else labels[rows] >= 0
    if has.all():
        return rows, []
    ids = [samples.ids[row] for row in rows]
    marked = [True if one else None for one in has]
    return rows[has], left_out(marked, ids, f"data.label {column!r}", f"the {split} split")


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
        with asked_by("data.validation_split"):
            samples = make(data.validation_split)
        parts["validation"] = samples, np.arange(len(samples))
    elif data.validation_share:
        groups = _complete(train, group) if group else None
        held = _held_out(np.random.default_rng((seed, HELD_OUT)), len(train), data.validation_share, groups)
        indices = np.setdiff1d(indices, held)
        parts["validation"] = train, held
    if data.test_split:
        with asked_by("data.test_split"):
            samples = make(data.test_split)
        parts["test"] = samples, np.arange(len(samples))
    if group:
        trained = _complete(train, group)[indices]
        for name, (samples, rows) in parts.items():
            kept = rows[~np.isin(_complete(samples, group)[rows], trained)]
            if not len(kept):
                raise ValueError(
                    f"data.group {group!r}: the {name} split has no sample of a group that is not trained on"
                )
            parts[name] = samples, kept
    return train, indices, parts


def of_other_groups(train: Any, parts: dict[str, tuple[Any, np.ndarray]], group: str) -> list[str]:
    """What is said of splits that lose samples of groups that are trained on."""
    said = []
    for name, (samples, rows) in parts.items():
        if group and samples is not train and len(rows) < len(samples):
            said.append(
                f"data.group {group!r}: {len(rows)} of {len(samples)} samples of the {name} split are scored: those of "
                "groups that are not trained on"
            )
    return said


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
    """Class names and the class of each sample, -1 for none, or None and its number, NaN for none.

    ValueError: no such column, or nothing to be learned from it.
    """
    if numbers:
        return None, _numbers(_column(samples, column), column, "train")
    names = _names(samples, column, "train", None)
    without = names.count(None)
    known = samples.classes or in_order(names)
    different = set(names) - {None}
    if not different:
        left_out(names, samples.ids, f"data.label {column!r}", "the train split")
    if len(different) < 2:
        raise ValueError(f"data.label {column!r} has one value, {min(different)!r}; there is nothing to tell apart")
    _check_whole(different, column)
    if len(different) == len(names) - without:
        raise ValueError(
            f"data.label {column!r} has another value for each of {len(different)} samples, such as "
            f"{next(name for name in names if name)!r}; is it the class?"
        )
    return known, _codes(names, known, column, "train")


def _check_whole(names: set[str | None], column: str) -> None:
    """ValueError: all names are numbers, and some are fractions, as cells of a csv file are before they are read so."""
    numbers = {name: number(name) for name in names}
    fractions = sorted(str(name) for name, value in numbers.items() if value % 1)
    if fractions and all(np.isfinite(value) for value in numbers.values()):
        raise ValueError(f"data.label {column!r} holds fractions such as {fractions[0]}; set data.regression=true")


def encode(samples: Any, column: str, names: list[str] | None, split: str) -> np.ndarray:
    """The classes of another split by the names of the training split, or its numbers if those are None.

    -1 and NaN: no label. ValueError: no such column, or a value that is no class.
    """
    if names is None:
        return _numbers(_column(samples, column), column, split)
    return _codes(_names(samples, column, split, names), names, column, split)


def _column(samples: Any, column: str) -> np.ndarray:
    try:
        return samples.column(column)
    except ValueError as error:
        raise ValueError(
            f"data.label is {column!r}: {error}; classes are the folders that files lie in, a column of "
            "metadata.csv beside them, or of a table (csv, jsonl, parquet) of any data"
        ) from None


def _complete(samples: Any, column: str) -> np.ndarray:
    try:
        return complete(samples, column)
    except ValueError as error:
        raise ValueError(f"data.group is {column!r}: {error}") from None


def _numbers(values: np.ndarray, column: str, split: str) -> np.ndarray:
    """As float32, NaN for empty cells. ValueError: cells that are no numbers, or that float32 cannot tell apart."""
    if values.dtype.kind in "biu":
        return _held(values.astype(np.float64), column, split)
    numbers = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            continue
        numbers[place] = number(value)
        if not np.isfinite(numbers[place]):
            comma = isinstance(value, str) and np.isfinite(number(value.replace(",", ".")))
            raise ValueError(
                f"data.label {column!r} of split {split!r} does not hold numbers, as data.regression=true needs: "
                f"{value!r}{'; write a point for a decimal comma, and nothing for one of thousands' if comma else ''}"
            )
    return _held(numbers, column, split)


def _held(numbers: np.ndarray, column: str, split: str) -> np.ndarray:
    """In float32, in which models compute. ValueError: that changes one by more than MOST_LOST of their spread."""
    there = numbers[np.isfinite(numbers)]
    held = numbers.astype(np.float32)
    lost = np.abs(held[np.isfinite(numbers)] - there).max(initial=0)
    if len(there) and lost > MOST_LOST * there.std() > 0:
        raise ValueError(
            f"data.label {column!r} of split {split!r} holds numbers such as {there[0]:.12g} of a spread of "
            f"{there.std():.3g}: models compute in float32, which changes them by up to {lost:.3g}; subtract a "
            f"constant, such as {np.floor(there.min()):.12g}"
        )
    return held


def _names(samples: Any, column: str, split: str, known: list[str] | None) -> list[str | None]:
    """The class of each sample by name. ValueError: no such column, or cells that are no classes."""
    cells = _column(samples, column)
    try:
        return names_of(cells, samples.classes, column, known)
    except ValueError as error:
        advice = "; set data.regression=true" if cells.dtype.kind == "f" else ""
        raise ValueError(f"data.label {error} in split {split!r}{advice}") from None


def _codes(names: list[str | None], known: list[str], column: str, split: str) -> np.ndarray:
    _refuse(set(names).difference(known, [None]), known, column, split)
    return numbered(names, known)


def _check_seen(codes: np.ndarray, trained: np.ndarray, names: list[str] | None, column: str, split: str) -> None:
    """ValueError: a class that the data declares, as folders of any split do, and no sample of train has."""
    if names is not None:
        seen = {*trained.tolist()}
        unseen = {names[code] for code in set(codes.tolist()) - seen if code >= 0}
        _refuse(unseen, [name for code, name in enumerate(names) if code in seen], column, split)


def _refuse(unseen: Collection[str | None], seen: Sequence[str], column: str, split: str) -> None:
    """ValueError: there are classes that training has not."""
    if unseen:
        few = ", ".join(map(repr, in_order(unseen)[:5]))
        raise ValueError(
            f"data.label {column!r} of split {split!r} holds {few}, unseen in training; "
            f"its classes are {', '.join(seen[:20])}"
        )


def labelled(opened: Opened, batches: Batches, save_preprocessor: Callable[[Path], None]) -> Labelled:
    """What a run of classification or regression trains on and is scored by."""
    names, trained = opened.names, np.asarray(opened.labels)[opened.indices]
    return Labelled(
        batches=batches,
        training=ScoredSplit(opened.train, opened.indices, trained),
        splits=opened.splits,
        head=_of_numbers(trained, opened.column) if names is None else _of_classes(names),
        score=_score_numbers if names is None else _score_classes,
        metric="pearson" if names is None else "accuracy",
        rows=_number_rows if names is None else partial(_class_rows, names),
        classes=names,
        save_preprocessor=save_preprocessor,
    )


def _of_numbers(trained: np.ndarray, column: str) -> dict[str, Any]:
    """A head that answers in their units: the steps of an optimizer are of one size, and prices are not near 0."""
    mean, std = float(trained.mean(dtype=np.float64)), float(trained.std(dtype=np.float64))
    units = {"label_mean": mean, "label_std": std or 1.0}
    return {"problem_type": REGRESSION, "id2label": {0: column}, "label2id": {column: 0}} | units


def _of_classes(names: list[str]) -> dict[str, Any]:
    by_name = {name: number for number, name in enumerate(names)}
    return {"problem_type": CLASSES, "id2label": dict(enumerate(names)), "label2id": by_name}


def _score_numbers(outputs: list[np.ndarray], labels: Sequence[Any]) -> dict[str, float]:
    return regression(np.stack(outputs)[:, 0], np.asarray(labels))


def _score_classes(outputs: list[np.ndarray], labels: Sequence[Any]) -> dict[str, float]:
    return classification(np.stack(outputs), np.asarray(labels))


def _number_rows(split: ScoredSplit, outputs: list[np.ndarray]) -> list[dict]:
    rows = []
    for index, label, output in zip(split.indices, split.labels, outputs, strict=True):
        rows.append({"id": split.samples.ids[index], "label": decimal(label), **of_number(output)})
    return rows


def _class_rows(names: list[str], split: ScoredSplit, outputs: list[np.ndarray]) -> list[dict]:
    """Lines of a predictions file; the probability is the prediction's."""
    rows = []
    for index, label, logits in zip(split.indices, split.labels, outputs, strict=True):
        rows.append({"id": split.samples.ids[index], "label": names[label], **of_class(names, logits)})
    return rows
