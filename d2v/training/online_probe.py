"""k-NN on a small labelled set every few steps of a run, without touching the training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d2v.evaluation.features import Samples, pooled_features
from d2v.evaluation.scoring import EvaluateConfig, evaluate_features, label_splits


@dataclass
class ProbeConfig:
    """The labelled set, how often, and the k-NN; scripts/evaluate.py gives the same numbers."""

    path: Any = ""  # as data.path; "": no probe
    every: int = 0  # steps; 0: ten times in a run
    train_split: str = "train"
    test_split: str = ""  # "": within train, each sample without itself
    label: str = "label"
    max_samples: int = 1000  # of each split
    k: int = 20
    batch_size: int = 64

    def __post_init__(self):
        """ValueError: a number that makes no sense."""
        for name, least in (("every", 0), ("max_samples", 2), ("k", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"run.probe.{name} is {getattr(self, name)}; it must be at least {least}")


class OnlineProbe:
    """The same samples each time."""

    def __init__(self, train: Samples, test: Samples | None, config: ProbeConfig):
        """ValueError: labels that are missing, of one class only, or in the test split alone."""
        self.settings = EvaluateConfig(
            train_split=config.train_split,
            test_split=config.test_split,
            max_train=config.max_samples,
            max_test=config.max_samples,
            label=config.label,
            k=[config.k],
            probe=False,
            batch_size=config.batch_size,
        )
        self.train, self.test = label_splits(train, test, self.settings)

    def __call__(self, student, teacher, device: torch.device) -> dict[str, float]:
        """Accuracy of both in [0, 1], by name; nothing of one whose features are not finite."""
        found = {f"probe_{name}_knn": self._accuracy(encoder, device) for name, encoder in (("student", student), ("teacher", teacher))}
        return {name: value for name, value in found.items() if value is not None}

    def _accuracy(self, encoder, device: torch.device) -> float | None:
        train, test = (
            split and pooled_features(encoder, split.samples, self.settings.batch_size, device, indices=split.indices, layer="last")["last"]
            for split in (self.train, self.test)
        )
        assert train is not None
        if not all(np.isfinite(x).all() for x in (train, test) if x is not None):
            return None
        (score,) = evaluate_features(train, test, self.train, self.test, self.settings, device).values()
        return score / 100
