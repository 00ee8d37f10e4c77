"""Retrieval and zero-shot classification against slow, obvious versions, and against what chance gives."""

import itertools
import tracemalloc

import numpy as np
import pytest

from d2v.evaluation import retrieval
from d2v.evaluation.retrieval import (
    chance_of_hit,
    chance_of_precision,
    class_vectors,
    first_hits,
    modality_gap,
    retrieve,
    unit,
    zero_shot,
)


def draw(seed: int, *shape: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def slowly(queries, items, mine, theirs) -> tuple[dict[int, float], float, float]:
    """Recall by k, the median rank and mean average precision: each query's items in a sorted list."""
    ranks, precisions = [], []
    for query, label in zip(queries, mine, strict=True):
        rated = [(-float(query @ item), other == label) for item, other in zip(items, theirs, strict=True)]
        order = [is_right for _, is_right in sorted(rated)]  # False is less than True
        ranks.append(order.index(True) + 1)
        shares = [sum(order[: place + 1]) / (place + 1) for place, is_right in enumerate(order) if is_right]
        precisions.append(sum(shares) / len(shares))
    recall = {k: sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return recall, float(np.median(ranks)), sum(precisions) / len(precisions)


@pytest.mark.parametrize("room", [2**24, 64])
@pytest.mark.parametrize("kind", ["rows", "texts", "classes"])
def test_retrieval_is_what_sorted_lists_say(kind: str, room: int, monkeypatch):
    monkeypatch.setattr(retrieval, "ROOM", room)  # the second: a chunk of two queries
    shared, generator = draw(0, 30, 8), np.random.default_rng(1)
    items, queries = unit(shared + 0.5 * draw(2, 30, 8)), unit(shared + 0.5 * draw(3, 30, 8))
    labels: tuple = (None, None)
    if kind == "texts":  # rows 0 and 1, 2 and 3, ... have one text each
        items[1:20:2] = items[:20:2]
        labels = ([f"t{row // 2 if row < 20 else row}" for row in range(30)],) * 2
    if kind == "classes":
        queries, labels = queries[:17], (generator.integers(0, 3, 17), generator.integers(0, 3, 30))
    found = retrieve(queries, items, *labels)
    mine, theirs = (range(30), range(30)) if labels[0] is None else labels
    recall, median, precision = slowly(queries, items, mine, theirs)
    assert found.recall == pytest.approx(recall) and found.median_rank == median
    assert found.mean_average_precision == pytest.approx(precision)
    assert (found.queries, found.items) == (len(queries), 30) and found.recall[1] > found.chance[1]


def test_chance_is_what_all_orders_give():
    for total, right in [(5, 1), (5, 2), (6, 3), (4, 4)]:
        orders = list(itertools.permutations([True] * right + [False] * (total - right)))
        for k in (1, 2, 5, 10):
            hits = np.mean([any(order[:k]) for order in orders])
            assert chance_of_hit(np.array([right]), total, k)[0] == pytest.approx(hits)
        precisions = []
        for order in orders:
            places = np.flatnonzero(order)
            precisions.append(np.mean([sum(order[: place + 1]) / (place + 1) for place in places]))
        assert chance_of_precision(np.array([right]), total)[0] == pytest.approx(np.mean(precisions))


def test_vectors_of_nothing_are_near_chance_and_collapsed_ones_find_nothing():
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    found = retrieve(draw(0, 2000, 16), draw(1, 2000, 16), labels, labels)
    assert found.recall[1] == pytest.approx(found.chance[1], abs=0.03) and found.chance[1] == pytest.approx(
        0.1, abs=0.01
    )
    assert found.mean_average_precision == pytest.approx(found.chance_of_precision, abs=0.003)
    one = np.repeat(draw(2, 1, 16), 50, axis=0)
    found = retrieve(one, one)
    assert found.recall[10] == 0 and found.median_rank == 50 and found.chance[10] == pytest.approx(0.2)


def test_many_rows_are_compared_a_chunk_at_a_time():
    """100,000 rows: 40 GB of cosines if all were in memory; here against 400 queries, which take as much at once."""
    items = draw(0, 100_000, 8)
    queries, labels = items[:400], np.arange(100_000) % 1000
    tracemalloc.start()
    found = retrieve(queries, items, labels[:400], labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.recall[1] == 1 and peak < 12 * retrieval.ROOM * 4


@pytest.mark.parametrize(
    ("sides", "labels", "said"),
    [
        ((3, 4), (), "3 queries and 4 items are no pairs"),
        ((3, 4), ([0, 1, 2], None), "labels are those of both sides"),
        ((3, 4), ([0, 1], [0, 1, 2, 3]), "3 queries and 4 items have 2 and 4 labels"),
        ((3, 4), ([0, 1, 7], [0, 1, 2, 3]), "no item is right for query 2"),
        ((0, 0), (), "cannot be compared"),
    ],
)
def test_sides_that_do_not_fit_are_one_line(sides, labels, said):
    with pytest.raises(ValueError, match=said):
        retrieve(draw(0, sides[0], 8), draw(1, sides[1], 8), *labels)
    with pytest.raises(ValueError, match="not finite"):
        retrieve(np.full((3, 8), np.nan, np.float32), draw(0, 3, 8))


def test_first_hits_come_nearest_first():
    queries, items = draw(0, 3, 8), draw(1, 20, 8)
    for query, row in zip(queries, first_hits(queries, items, 4), strict=True):
        assert list(row) == sorted(range(20), key=lambda item: -float(query @ items[item]))[:4]


def test_the_gap_is_of_the_means_and_of_what_a_classifier_held_out_sees():
    first, second = draw(0, 400, 8), draw(1, 300, 8)
    gap = modality_gap(first, second)
    assert gap.distance == pytest.approx(np.sqrt(sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)), rel=1e-4)
    assert 0.4 < gap.accuracy < 0.6  # more numbers than a training set could learn by heart would not pass
    apart = unit(second + np.array([3, 0, 0, 0, 0, 0, 0, 0], np.float32))
    assert modality_gap(first, apart).accuracy > 0.9 and modality_gap(first, apart).distance > 0.5
    wide = modality_gap(draw(2, 40, 200), draw(3, 40, 200))  # separable in training, by chance
    assert wide.accuracy < 0.75
    with pytest.raises(ValueError, match="four or more rows of each side; there are 3"):
        modality_gap(first[:3], second)


def test_the_vector_of_a_class_is_the_mean_over_templates():
    table = {
        "a cat": draw(0, 1, 6)[0],
        "cat!": 3 * draw(1, 1, 6)[0],
        "a dog": draw(2, 1, 6)[0],
        "dog!": draw(3, 1, 6)[0],
    }
    vectors = class_vectors(lambda texts: np.stack([table[text] for text in texts]), ["cat", "dog"], ["a {}", "{}!"])
    for vector, name in zip(vectors, ("cat", "dog"), strict=True):
        ones = [table[text] / np.linalg.norm(table[text]) for text in (f"a {name}", f"{name}!")]
        mean = (ones[0] + ones[1]) / 2
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    for templates in (["a {}", "a cat"], []):
        with pytest.raises(ValueError, match=r"each must hold \{\}"):
            class_vectors(lambda texts: draw(0, len(texts), 6), ["cat"], templates)


def test_zero_shot_is_the_nearest_name():
    classes, labels = draw(0, 4, 8), np.array([0, 0, 0, 1, 1, 2])
    vectors = classes[[0, 0, 1, 1, 2, 2]]
    scored = zero_shot(vectors, classes, labels, ["a", "b", "c", "d"])
    assert scored.accuracy == pytest.approx(4 / 6) and scored.chance == 0.25 and scored.largest == 0.5
    assert scored.by_class == pytest.approx({"a": 2 / 3, "b": 0.5, "c": 1.0})
