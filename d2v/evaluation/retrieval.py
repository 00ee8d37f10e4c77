"""How well vectors of one side find what belongs to them on the other, and how far apart the two sides lie.

n queries, m items, B queries of a chunk, r items that are right for a query, C classes, P width; all vectors are of
unit length. What is right for a query: items of its label or, without labels, the item of its own row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from d2v.evaluation.classifiers import fit_logistic, zscore

HITS = (1, 5, 10)  # k of recall@k
ROOM = 2**24  # cosines in memory at once
MAX_APART = 5000  # rows of each side for the classifier of the gap


class Found(NamedTuple):
    """What queries found; shares from 0 to 1, beside those of items in random order."""

    recall: dict[int, float]  # by k: queries that have a right item among their first k
    chance: dict[int, float]
    median_rank: float  # of the first right item, counted from 1
    mean_average_precision: float
    chance_of_precision: float
    queries: int
    items: int


class Gap(NamedTuple):
    """How far two sides lie apart."""

    distance: float  # of their means, 0 to 2
    accuracy: float  # of a linear classifier that tells them apart, held out; 0.5: it cannot, 1: they do not mix


class ZeroShot(NamedTuple):
    """What names of classes are worth as a classifier; shares from 0 to 1."""

    accuracy: float
    chance: float  # 1 / C
    largest: float  # what the most frequent class alone gives
    by_class: dict[str, float]  # of those that occur


def retrieve(
    queries: np.ndarray,
    items: np.ndarray,
    query_labels: Sequence | np.ndarray | None = None,
    item_labels: Sequence | np.ndarray | None = None,
) -> Found:
    """Ranks the items (m, P) of each query (n, P) by cosine; of equal cosines the wrong ones come first.

    Vectors that have collapsed into one hence find nothing. Average precision is the mean, over a query's right items,
    of the share of right ones among all down to it. Labels, (n,) and (m,), are given together or not at all.
    ValueError: sides that do not fit, vectors that are not finite, a query for which no item is right.
    """
    mine, theirs = _labels(queries, items, query_labels, item_labels)
    ranks, precisions = np.zeros(len(queries)), np.zeros(len(queries))
    counts = np.zeros(len(queries), dtype=np.int64)  # r
    rows = max(1, ROOM // len(items))
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        cosines = queries[some] @ items.T  # (B, m)
        right = mine[some, None] == theirs  # (B, m)
        counts[some] = right.sum(axis=1)
        if not counts[some].all():
            row = start + int(np.argmin(counts[some]))
            raise ValueError(f"no item is right for query {row}: none has its label")
        ranks[some] = first_ranks(cosines, right)
        alone = (counts[some] == 1).all()
        precisions[some] = 1 / ranks[some] if alone else average_precisions(cosines, right)
    recall = {k: float((ranks <= k).mean()) for k in HITS}
    chance = {k: float(chance_of_hit(counts, len(items), k).mean()) for k in HITS}
    of_chance = float(chance_of_precision(counts, len(items)).mean())
    median = float(np.median(ranks))
    return Found(recall, chance, median, float(precisions.mean()), of_chance, len(queries), len(items))


def _labels(queries: np.ndarray, items: np.ndarray, first, second) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both sides as integers, (n,) and (m,). ValueError: as of `retrieve`."""
    if not len(queries) or not len(items) or queries.shape[1] != items.shape[1]:
        raise ValueError(f"vectors of shape {queries.shape} cannot be compared with those of {items.shape}")
    if not np.isfinite(queries).all() or not np.isfinite(items).all():
        raise ValueError("vectors are not finite: the model is damaged, or its run diverged")
    if (first is None) != (second is None):
        raise ValueError("labels are those of both sides, or of none")
    if first is None or second is None:
        if len(queries) != len(items):
            raise ValueError(f"{len(queries)} queries and {len(items)} items are no pairs: without labels, rows are")
        return np.arange(len(queries)), np.arange(len(items))
    if (len(first), len(second)) != (len(queries), len(items)):
        sizes = f"{len(queries)} queries and {len(items)} items"
        raise ValueError(f"{sizes} have {len(first)} and {len(second)} labels")
    numbers = np.unique(np.concatenate([np.asarray(first), np.asarray(second)]), return_inverse=True)[1]
    return numbers[: len(first)], numbers[len(first) :]


def first_ranks(cosines: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(B, m), (B, m) bool -> (B,), the place of the first right item, counted from 1."""
    best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)  # (B, 1)
    return 1 + ((cosines >= best) & ~right).sum(axis=1)


def average_precisions(cosines: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(B, m), (B, m) bool -> (B,)."""
    wrong = np.sort(np.where(right, -np.inf, cosines), axis=1)  # (B, m), the farthest first
    found = np.zeros(len(cosines))
    for row, ones in enumerate(right):
        mine = np.sort(cosines[row, ones])[::-1]  # (r,)
        before = wrong.shape[1] - np.searchsorted(wrong[row], mine)  # (r,) wrong ones that are as near, or nearer
        place = np.arange(1, len(mine) + 1)
        found[row] = (place / (place + before)).mean()
    return found


def chance_of_hit(right: np.ndarray, total: int, k: int) -> np.ndarray:
    """The chance of one or more of `right` (n,) items among the first k of `total` in random order, (n,)."""
    miss = np.ones(len(right))
    for place in range(min(k, total)):
        miss *= np.maximum(0, total - right - place) / (total - place)
    return 1 - miss


def chance_of_precision(right: np.ndarray, total: int) -> np.ndarray:
    """The average precision that is to be expected of items in random order, (n,).

    A right item stands at each place alike, and of those before it a share (right - 1) / (total - 1) is right.
    """
    harmonic = (1 / np.arange(1, total + 1)).sum()
    others = (right - 1) / max(1, total - 1)
    return (harmonic + (total - harmonic) * others) / total


def first_hits(queries: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """(n, count): the items that are nearest to each query, the nearest first; of few queries."""
    return np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :count]


def modality_gap(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Gap:
    """Of two sides (n, P), (m, P): Liang et al. 2022, "Mind the gap".

    The classifier is scikit-learn's logistic regression, fitted on half of as many rows of each, and scored on the
    other half; of pairs both rows lie in one half. ValueError: a side of less than four rows.
    """
    count = min(len(first), len(second), MAX_APART)
    if count < 4:
        raise ValueError(f"the modality gap needs four or more rows of each side; there are {count}")
    distance = float(np.linalg.norm(first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)))
    some = [np.random.default_rng(seed).permutation(len(side))[:count] for side in (first, second)]
    half = count // 2
    train = np.concatenate([first[some[0][:half]], second[some[1][:half]]])
    test = np.concatenate([first[some[0][half:]], second[some[1][half:]]])
    x, test_x = zscore(train, test)
    classifier = fit_logistic(x, np.repeat([0, 1], half), 1.0)
    return Gap(distance, float(classifier.score(test_x, np.repeat([0, 1], count - half))))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, P) at length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def class_vectors(
    embed: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """(C, P): of each name the unit mean of its unit vectors (Radford et al. 2021, section 3.1.4).

    `embed` gives the vectors (L, P) of L texts: each template with a name in place of its `{}`. ValueError: a template
    without one.
    """
    without = [template for template in templates if "{}" not in template]
    if without or not templates:
        raise ValueError(f"templates are {list(templates)!r}; each must hold {{}}, where the name of the class goes")
    texts: list[str] = []
    for name in names:
        texts += [template.replace("{}", name) for template in templates]
    vectors = unit(embed(texts)).reshape(len(names), len(templates), -1)  # (C, templates, P)
    return unit(vectors.mean(axis=1))


def zero_shot(vectors: np.ndarray, of_classes: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> ZeroShot:
    """Each of (n, P) takes the class whose vector (C, P) is nearest; `labels` (n,) are their own, `names` C."""
    right = (vectors @ of_classes.T).argmax(axis=1) == labels
    by_class = {name: float(right[labels == number].mean()) for number, name in enumerate(names) if number in labels}
    largest = float(np.bincount(labels).max() / len(labels))
    return ZeroShot(float(right.mean()), 1 / len(names), largest, by_class)
