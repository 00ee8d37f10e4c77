"""How far a few labels go: logistic regression on some samples of each class, drawn several times.

Its C is 1: so few labels leave nothing to choose it by, and the test set must not.
"""

import numpy as np

from d2v.evaluation.classifiers import fit_logistic, zscore
from d2v.evaluation.figures import Curve, lines_figure, save_figure
from d2v.evaluation.report import Finding, Subject

NEEDS = ("labels", "test")


def report(subject: Subject) -> Finding:
    """Mean and spread over draws for each encoder and number of labels."""
    test, config, labels = subject.tested("few_labels"), subject.config, subject.labels("few_labels")
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for name, (near, far) in subject.features.items():
        assert far is not None
        numbers[name] = {}
        for amount in config.few_labels:
            scores, rows = [], np.zeros(0, int)
            for number in range(config.few_draws):
                rows = draw(labels, amount, np.random.default_rng((config.seed, number)))
                scores.append(100 * accuracy(near[rows], labels[rows], far, test.labels))
            numbers[name][amount] = {
                "labels": float(len(rows)),  # the same in every draw
                "mean": float(np.mean(scores)),
                "spread": float(np.std(scores)),
            }
    curves = {name: _curve(list(points.values())) for name, points in numbers.items()}
    figure = lines_figure(curves, title=f"Few labels: {subject.name}", xlabel="labels", ylabel="accuracy (%)", log=True)
    save_figure(figure, subject.picture("few_labels"))
    lines = []
    for name, points in numbers.items():
        shown = [
            f"{amount} ({point['labels']:.0f} labels) {point['mean']:.1f} ±{point['spread']:.1f}"
            for amount, point in points.items()
        ]
        lines.append(f"few labels of {name}: {', '.join(shown)}")
    return Finding(lines, numbers)


def _curve(points: list[dict[str, float]]) -> Curve:
    """Accuracies over the number of labels."""
    points = sorted(points, key=lambda point: point["labels"])
    return Curve(
        [point["labels"] for point in points],
        [point["mean"] for point in points],
        [point["spread"] for point in points],
    )


def draw(labels: np.ndarray, amount: str, generator: np.random.Generator) -> np.ndarray:
    """Rows of `amount` of each class: "5%" of its samples, at least one, or "5" of them, at most all."""
    rows = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        wanted = max(1, round(float(amount[:-1]) / 100 * len(mine))) if amount.endswith("%") else int(amount)
        rows.append(generator.permutation(mine)[:wanted])
    return np.sort(np.concatenate(rows))


def accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Of logistic regression with C = 1 on z-scored features, in [0, 1]."""
    x, test_x = zscore(train, test)
    return float(fit_logistic(x, train_labels, 1.0).score(test_x, test_labels))
