"""Average precision of boxes, against COCO's as a slow loop."""

import importlib.util

import numpy as np
import pytest

from d2v.finetuning import precision

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None,
    reason="needs torchmetrics and faster-coco-eval: pip install 'd2v[detection]'",
)


def slow_precision(found: list[np.ndarray], wanted: list[np.ndarray], least: float) -> float:
    """COCO's: boxes of a class by score, each takes the true one that it overlaps most; 101 recalls."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
        inner = max(0.0, sides[0]) * max(0.0, sides[1])
        return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)

    precisions = []
    for kind in {int(box[4]) for truth in wanted for box in truth}:
        hits, num_true = [], 0
        for boxes, truth in zip(found, wanted, strict=True):
            free = [box for box in truth if box[4] == kind]
            num_true += len(free)
            mine = [box for box in boxes if box[5] == kind]
            for box in sorted(mine, key=lambda one: -one[4])[:100]:
                overlaps = [overlap(box, other) for other in free]
                best = int(np.argmax(overlaps)) if free else -1
                is_hit = bool(free) and overlaps[best] >= least
                hits.append((box[4], is_hit))
                if is_hit:
                    free.pop(best)
        hits.sort(key=lambda pair: -pair[0])
        right = np.cumsum([is_hit for _, is_hit in hits])
        recall, precise = right / num_true, right / np.arange(1, len(hits) + 1)
        at = []
        for level in np.linspace(0, 1, 101):
            later = precise[recall >= level - 1e-12]
            at.append(later.max() if len(later) else 0.0)
        precisions.append(float(np.mean(at)))
    return float(np.mean(precisions))


def drawn(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images with true boxes, and found ones near some of them and elsewhere."""
    generator = np.random.default_rng(seed)
    found, wanted = [], []
    for _ in range(6):
        corners = generator.uniform(0, 60, (generator.integers(1, 6), 2))
        truth = np.concatenate([corners, corners + generator.uniform(10, 30, corners.shape)], axis=1)
        near = np.repeat(truth, 2, axis=0) + generator.normal(0, 4, (2 * len(truth), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 4)
        kinds = generator.integers(0, 3, len(truth))
        guessed = np.where(generator.random(len(near)) < 0.8, np.repeat(kinds, 2), generator.integers(0, 4, len(near)))
        scores = generator.random(len(near))
        wanted.append(np.c_[truth, kinds].astype(np.float32))
        found.append(np.c_[near, scores, guessed].astype(np.float32))
    return [*found, np.zeros((0, 6), np.float32)], [*wanted, np.zeros((0, 5), np.float32)]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_slow_loop(seed):
    found, wanted = drawn(seed)
    scores = precision.average_precision(found, wanted)
    assert scores["ap50"] == pytest.approx(slow_precision(found, wanted, 0.5), abs=1e-6)
    steps = [slow_precision(found, wanted, least) for least in np.arange(0.5, 1, 0.05)]
    assert 0.1 < scores["ap"] < scores["ap50"] and scores["ap"] == pytest.approx(np.mean(steps), abs=1e-6)


def test_what_is_right_has_a_precision_of_one_and_what_is_missing_none():
    _, wanted = drawn(0)
    right = [np.insert(truth, 4, 0.9, axis=1) for truth in wanted]
    assert precision.average_precision(right, wanted) == {"ap50": pytest.approx(1), "ap": pytest.approx(1)}
    nothing = [np.zeros((0, 6), np.float32) for _ in wanted]
    assert precision.average_precision(nothing, wanted) == {"ap50": 0, "ap": 0}
