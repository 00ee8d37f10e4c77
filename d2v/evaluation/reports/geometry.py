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
    """Of train's features, for each encoder. Positive pairs of the alignment are samples of one class: nothing is augmented here."""
    labels = subject.labels("geometry")
    features = {name: torch.from_numpy(np.ascontiguousarray(near)) for name, (near, _) in subject.features.items()}
    some = np.unique(np.linspace(0, len(subject.train.indices) - 1, MAX_PAIRED).astype(int))
    first, second = pairs(labels, np.random.default_rng(subject.config.seed))
    numbers, lines = {}, []
    for name, x in features.items():
        unit = F.normalize(x.float(), dim=1)
        found = {
            "alignment": float(alignment(unit[first], unit[second])),
            "uniformity": float(uniformity(unit[some])),
            "rankme": rankme(x),
            "effective_rank": effective_rank(x),
        }
        numbers[name] = found
        lines.append(
            f"{name}: RankMe {found['rankme']:.1f}, effective rank {found['effective_rank']:.1f} (of {x.shape[1]}, {len(x)} samples); "
            f"alignment of a class {found['alignment']:.3f}, uniformity {found['uniformity']:.3f}"
        )
    spectra = {name: values for name, x in features.items() if (values := singular_values(x)).any()}
    if spectra:
        save_figure(
            spectrum_figure(spectra, f"Singular values of the covariance: {subject.name}"), subject.picture("spectrum")
        )
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
