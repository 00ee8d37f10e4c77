"""Scores against slow versions, their direction, and the table over runs."""

import json

import numpy as np
import pytest
from scipy.stats import rankdata

from d2v.finetuning.outcome import table_of_runs
from d2v.finetuning.scores import better, classification, regression
from d2v.training.curves import confusion_figure


def slow_f1(labels: np.ndarray, found: np.ndarray, label: int) -> float:
    both, said, true = ((labels == label) & (found == label)).sum(), (found == label).sum(), (labels == label).sum()
    return 0.0 if said + true == 0 else 2 * both / (said + true)


def slow_correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


@pytest.mark.parametrize("num_classes", [2, 4, 8])
def test_scores_of_classes(num_classes):
    generator = np.random.default_rng(num_classes)
    logits, labels = (
        generator.normal(size=(50, num_classes)).astype(np.float32),
        generator.integers(num_classes, size=50),
    )
    logits[np.arange(50), labels] += 1
    scores, found = classification(logits, labels), logits.argmax(1)
    assert scores["accuracy"] == pytest.approx(np.mean([f == y for f, y in zip(found, labels, strict=True)]))
    per_class = [slow_f1(labels, found, label) for label in range(num_classes)]
    assert scores["f1"] == pytest.approx(per_class[1] if num_classes == 2 else np.mean(per_class))
    one_hot = [np.eye(num_classes)[values] for values in (labels, found)]
    covariance = [[np.cov(np.stack([a.ravel(), b.ravel()]))[0, 1] for b in one_hot] for a in one_hot]
    if num_classes == 2:  # then it is the correlation of the two indicators
        assert scores["matthews"] == pytest.approx(slow_correlation(labels.astype(float), found.astype(float)))
    assert np.sign(scores["matthews"]) == np.sign(covariance[0][1])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert scores["loss"] == pytest.approx(-np.log(shares[np.arange(50), labels]).mean(), rel=1e-5)
    if num_classes > 5:
        assert scores["top5"] == pytest.approx(
            np.mean(
                [y in sorted(range(num_classes), key=lambda c: -x[c])[:5] for x, y in zip(logits, labels, strict=True)]
            )
        )
    assert ("top5" in scores) == (num_classes > 5)


def test_scores_of_numbers():
    generator = np.random.default_rng(0)
    labels = generator.normal(size=30)
    values = labels + generator.normal(size=30)
    scores = regression(values, labels)
    assert scores["pearson"] == pytest.approx(slow_correlation(values, labels))
    assert scores["spearman"] == pytest.approx(slow_correlation(rankdata(values), rankdata(labels)))
    assert scores["loss"] == pytest.approx(((values - labels) ** 2).mean())
    assert regression(np.ones(5), labels[:5])["pearson"] == 0


def test_which_way_is_better():
    assert (
        better("accuracy", 0.5, 0.4)
        and not better("accuracy", 0.4, 0.4)
        and not better("accuracy", float("nan"), float("-inf"))
    )
    assert (
        better("wer", 0.4, 0.5) and better("loss", 1.0, float("inf")) and not better("loss", float("nan"), float("inf"))
    )


def test_the_table_has_a_line_for_each_finished_run(tmp_path):
    for name, scores in (
        ("cola", {"validation": {"matthews": 0.5}}),
        ("mrpc", {"validation": {"f1": 0.1}, "test": {"f1": 0.75}}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"scores": scores}))
    assert table_of_runs(tmp_path).splitlines() == [
        "| run | of | matthews | f1 |",
        "|---|---|---|---|",
        "| cola | validation | 0.5 |  |",
        "| mrpc | test |  | 0.75 |",
    ]
    assert table_of_runs(tmp_path / "cola") == ""


def test_a_split_of_one_class_has_scores_and_no_warning(recwarn):
    scores = classification(np.array([[2.0, 1.0], [3.0, 0.0]]), np.array([0, 0]))
    assert (scores["accuracy"], scores["matthews"]) == (1.0, 0.0) and not recwarn.list


def test_the_confusion_matrix_shows_every_count():
    labels, found = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    (axes,) = confusion_figure(labels, found, ["cat", "dog", "eel"]).axes
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert np.allclose(axes.images[0].get_array(), np.array(expected) / np.array([[2], [1], [3]]))
    shown = {(int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axes.texts}
    assert shown == {(row, column): expected[row][column] for row in range(3) for column in range(3)}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "dog", "eel"]
