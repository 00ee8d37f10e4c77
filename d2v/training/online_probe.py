"""k-NN on a small labelled set every few steps of a run, without touching the training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import readable_features
from d2v.evaluation.scoring import evaluate_features
from d2v.evaluation.splits import EvaluationSplit, label_splits
from d2v.protocols import Samples
from d2v.reading import Reader
from d2v.settings import check_fields, setting


@dataclass
class ProbeConfig:
    """The labelled set, how often, and the k-NN; scripts/evaluate.py gives the same numbers."""

    path: Any = setting("", "Where the labelled set is, as data.path; empty: no probe.", place=True)
    every: int = setting(0, "Steps between probes; 0: ten times in a run.", least=0, only={"path": True})
    train_split: str = setting("train", "The split whose samples are the neighbours.", only={"path": True})
    test_split: str = setting(
        "", "The split that is scored; empty: within train, each sample without itself.", only={"path": True}
    )
    label: str = setting("label", "The column to be predicted.", only={"path": True})
    max_samples: int = setting(1000, "Samples of each split.", least=2, only={"path": True})
    k: int = setting(20, "Neighbours that vote.", least=1, only={"path": True})
    batch_size: int = setting(64, "Of computing features; changes no result.", least=1, only={"path": True})

    def __post_init__(self):
        """ValueError: a number that makes no sense."""
        check_fields(self, "run.probe")


class OnlineProbe:
    """k-NN accuracy of student and teacher during training, on samples that are chosen once for the whole run."""

    def __init__(self, train: Samples, test: Samples | None, config: ProbeConfig, reader: Reader | None = None):
        """`reader` says what becomes of unreadable samples, None: they are an error.

        ValueError: labels that are missing, of one class only, or in the test split alone.
        """
        self.reader = reader or Reader()
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
        accuracies = {}
        for name, encoder in (("student", student), ("teacher", teacher)):
            accuracy = self._accuracy(encoder, device)
            if accuracy is not None:
                accuracies[f"probe_{name}_knn"] = accuracy
        return accuracies

    def _accuracy(self, encoder, device: torch.device) -> float | None:
        """Of one encoder; None if a feature is not finite."""
        near, train = self._pooled(encoder, self.train, device)
        far, test = (None, None) if self.test is None else self._pooled(encoder, self.test, device)
        if not np.isfinite(near).all() or (far is not None and not np.isfinite(far).all()):
            return None
        (score,) = evaluate_features(near, far, train, test, self.settings, device).values()
        return score / 100

    def _pooled(self, encoder, split: EvaluationSplit, device: torch.device) -> tuple[np.ndarray, EvaluationSplit]:
        """(N, D) of the last layer, and the samples that could be read."""
        size = self.settings.batch_size
        places, features = readable_features(
            self.reader, encoder, split.samples, size, device, indices=split.indices, layer="last"
        )
        return features["last"], split.some(places)


class JointProbe:
    """The probes of a joint run's modalities, as one."""

    def __init__(self, probes: Mapping[str, OnlineProbe]):
        self.probes = probes

    def __call__(self, student, teacher, device: torch.device) -> dict[str, float]:
        """Accuracies of each, behind the modality's name and a slash."""
        accuracies = {}
        for name, probe in self.probes.items():
            for key, value in probe(student, teacher, device).items():
                accuracies[f"{name}/{key}"] = value
        return accuracies
