"""k-NN over many k: the whole curve, because the best k is chosen by the data that it is scored on."""

import re
from dataclasses import replace

from d2v.evaluation.figures import Curve, lines_figure, save_figure
from d2v.evaluation.report import Finding, Subject
from d2v.evaluation.scoring import evaluate_features

KS = (1, 2, 5, 10, 20, 50, 100, 200)
NEEDS = ("labels",)


def report(subject: Subject) -> Finding:
    """A curve for each encoder and kind of neighbours."""
    config = replace(subject.config, k=[k for k in KS if k < len(subject.train.indices)], probe=False)
    curves: dict[str, dict[int, float]] = {}
    for name, (near, far) in subject.features.items():
        for score, value in evaluate_features(near, far, subject.train, subject.test, config, subject.device).items():
            k, kind = re.fullmatch(r"k-NN (\d+)(.*)", score).groups()  # type: ignore[union-attr]
            curves.setdefault(name + kind, {})[int(k)] = value
    drawn = {name: Curve(list(curve), list(curve.values())) for name, curve in curves.items()}
    figure = lines_figure(drawn, title=f"k-NN of {subject.name}", xlabel="k", ylabel="accuracy (%)", log=True)
    save_figure(figure, subject.picture("knn_sweep"))
    lines = [
        f"k-NN of {name}: {min(c.values()):.1f} to {max(c.values()):.1f}, best at k = {max(c, key=lambda k: c[k])}"
        for name, c in curves.items()
    ]
    return Finding(lines, curves)
