"""k-NN on a small labelled set every few steps of a run, without touching the training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d2v.evaluation.features import Samples, pooled_features
from d2v.evaluation.scoring import EvaluateConfig, evaluate_features, label_splits
from d2v.settings import check_fields, setting


@dataclass
class ProbeConfig:
    """The labelled set, how often, and the k-NN; scripts/evaluate.py gives the same numbers."""

    path: Any = setting("", "Where the labelled set is, as data.path; empty: no probe.")
    every: int = setting(0, "Steps between probes; 0: ten times in a run.", least=0)
    train_split: str = setting("train", "The split whose samples are the neighbours.")
    test_split: str = setting("", "The split that is scored; empty: within train, each sample without itself.")
    label: str = setting("label", "The column to be predicted.")
    max_samples: int = setting(1000, "Samples of each split.", least=2)
    k: int = setting(20, "Neighbours that vote.", least=1)
    batch_size: int = setting(64, "Of computing features; changes no result.", least=1)

    def __post_init__(self):
        """ValueError: a number that makes no sense."""
        check_fields(self, "run.probe")


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
        found = {
            f"probe_{name}_knn": self._accuracy(encoder, device)
            for name, encoder in (("student", student), ("teacher", teacher))
        }
        return {name: value for name, value in found.items() if value is not None}

    def _accuracy(self, encoder, device: torch.device) -> float | None:
        train, test = (
            split
            and pooled_features(
                encoder, split.samples, self.settings.batch_size, device, indices=split.indices, layer="last"
            )["last"]
            for split in (self.train, self.test)
        )
        assert train is not None
        if not all(np.isfinite(x).all() for x in (train, test) if x is not None):
            return None
        (score,) = evaluate_features(train, test, self.train, self.test, self.settings, device).values()
        return score / 100
