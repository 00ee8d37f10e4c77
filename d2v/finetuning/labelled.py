"""What a modality's labelled data gives to fine-tuning. N samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2v.training.loop import BatchFunction


class Split(NamedTuple):
    """Labelled samples that are scored: one label for each of `indices` into `samples`."""

    samples: Any  # a modality's Samples: view, lengths, ids
    indices: np.ndarray  # (N,)
    labels: Sequence[Any]  # N


Score = Callable[[list[np.ndarray], Sequence[Any]], dict[str, float]]  # of outputs and labels


@dataclass
class Labelled:
    """What a run trains on, what it is scored on and how, and what its files say."""

    batches: BatchFunction  # views with labels
    splits: dict[str, Split]  # those that are scored: "validation" chooses, "test" is only looked at in the end
    head: dict[str, Any]  # of the model's config: id2label, label2id, num_labels, problem_type
    score: Score
    metric: str  # the score that chooses if train.metric does not say
    rows: Callable[[Split, list[np.ndarray]], list[dict]]  # of the predictions file
    classes: list[str] | None  # of the confusion matrix
    save_preprocessor: Callable[[Path], None]
    # Scores of what is in the rows, which cost too much for `score`.
    row_scores: Callable[[list[dict]], dict[str, float]] | None = None
