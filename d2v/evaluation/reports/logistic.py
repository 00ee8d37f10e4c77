"""Logistic regression (scikit-learn's) whose C a holdout of train chooses."""

from d2v.evaluation.classifiers import logistic_regression
from d2v.evaluation.report import Finding, Subject

NEEDS = ("labels", "test")


def report(subject: Subject) -> Finding:
    """Accuracy and C for each encoder."""
    test, config = subject.tested("logistic"), subject.config
    numbers, lines, labels = {}, [], subject.labels("logistic")
    for name, (near, far) in subject.features.items():
        assert far is not None
        score, c = logistic_regression(
            near, labels, far, test.labels, cs=config.logistic_cs, held=config.probe_holdout, seed=config.seed
        )
        numbers[name] = {"accuracy": 100 * score, "C": c}
        lines.append(f"logistic regression of {name}: {100 * score:.1f} (C = {c:g}, chosen by a holdout)")
    return Finding(lines, numbers)
