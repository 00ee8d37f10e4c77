"""How features fill their space: alignment and uniformity, RankMe, and the spectrum of their covariance."""

import numpy as np
import torch
import torch.nn.functional as F

from d2v.evaluation.figures import save_figure
from d2v.evaluation.report import Finding, Subject
from d2v.training.collapse import alignment, effective_rank, rankme, singular_values, uniformity
from d2v.training.curves import spectrum_figure

MAX_PAIRED = 4096  # samples: uniformity reads all their pairs


def report(subject: Subject) -> Finding:
    """Of train's features, for each encoder.

    Positive pairs of the alignment are samples of one class, as nothing is augmented here; without labels there are
    none, and it is left out.
    """
    features = {name: torch.from_numpy(np.ascontiguousarray(near)) for name, (near, _) in subject.features.items()}
    some = np.unique(np.linspace(0, len(subject.train.indices) - 1, MAX_PAIRED).astype(int))
    first, second = pairs(subject.train.labels, np.random.default_rng(subject.config.seed))
    numbers, lines = {}, []
    for name, x in features.items():
        unit = F.normalize(x.float(), dim=1)
        measured = {"alignment": float(alignment(unit[first], unit[second]))} if len(first) else {}
        measured |= {
            "uniformity": float(uniformity(unit[some])),
            "rankme": rankme(x),
            "effective_rank": effective_rank(x),
        }
        numbers[name] = measured
        lines.append(
            f"{name}: RankMe {measured['rankme']:.1f}, effective rank {measured['effective_rank']:.1f} "
            f"(of {x.shape[1]}, {len(x)} samples); uniformity {measured['uniformity']:.3f}"
            + (f", alignment of a class {measured['alignment']:.3f}" if len(first) else "")
        )
    spectra = {name: singular_values(x) for name, x in features.items()}
    drawn = {name: values for name, values in spectra.items() if values.any()}
    if drawn:
        figure = spectrum_figure(drawn, f"Singular values of the covariance: {subject.name}")
        save_figure(figure, subject.picture("spectrum"))
    return Finding(lines, numbers)


def pairs(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each sample with another of its class: two of (n,), without classes of one sample."""
    first, second = [], []
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        if len(mine) > 1:
            first.append(mine)
            second.append(np.roll(mine, 1))
    return np.concatenate(first or [np.zeros(0, int)]), np.concatenate(second or [np.zeros(0, int)])
