"""Validation during fine-tuning: scores of a labelled split at intervals, the best model, and when to stop.

The best score and its step are buffers of the objective, so that a resumed run chooses and stops as one that was never interrupted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from d2v.finetuning.objective import Supervised
from d2v.finetuning.scores import LOWER_IS_BETTER, better
from d2v.models.task_models import TaskModel
from d2v.protocols import ScoredSplit
from d2v.training.distributed import all_sum

Score = Callable[[list[np.ndarray], Sequence[Any]], dict[str, float]]


@torch.no_grad()
def outputs(
    model: TaskModel, split: ScoredSplit, batch_size: int, device: torch.device | str = "cpu"
) -> list[np.ndarray]:
    """Logits of each sample of a split in its order, (C,), or (T, V) of its own T tokens; in evaluation mode, samples of similar length together."""
    lengths = split.samples.lengths
    order = np.argsort(np.zeros(len(split.indices)) if lengths is None else lengths[split.indices], kind="stable")
    training = model.training
    model.eval()
    found: list[np.ndarray] = []
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        view = split.samples.view(split.indices[rows]).to(device)
        logits = model(view).logits.float().cpu()
        if logits.ndim == 2 or view.padding is None:
            found += list(logits.numpy())
        else:
            found += [row[real].numpy() for row, real in zip(logits, ~view.padding.cpu(), strict=True)]
    model.train(training)
    return [found[place] for place in np.argsort(order)]


class Validation:
    """Scores the objective's result; `keep` saves it when it is the best so far."""

    def __init__(
        self,
        objective: Supervised,
        split: ScoredSplit,
        score: Score,
        *,
        metric: str,
        batch_size: int,
        keep: Callable[[TaskModel], None],
    ):
        self.objective, self.split, self.score, self.metric, self.batch_size, self.keep = (
            objective,
            split,
            score,
            metric,
            batch_size,
            keep,
        )
        self.config = objective.config
        self.every = self.config.validate_every or max(1, self.config.steps // 20)
        worst = float("inf") if metric in LOWER_IS_BETTER else float("-inf")
        objective.register_buffer("best_score", torch.tensor(worst))
        objective.register_buffer("best_step", torch.tensor(0))

    def due(self, step: int) -> bool:
        """Whether this step ends with a validation."""
        return step % self.every == 0

    def __call__(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """The scores as "validation_<name>", measured on the main process. ValueError: train.metric is none of them."""
        objective, scores = self.objective, {}
        value = torch.zeros((), device=accelerator.device)
        if accelerator.is_main_process:
            scores = self.score(
                outputs(objective.result, self.split, self.batch_size, accelerator.device), self.split.labels
            )
            objective.train()
            if self.metric not in scores:
                raise ValueError(f"train.metric is {self.metric!r}; the scores of this task are {', '.join(scores)}")
            value.fill_(scores[self.metric])
        score = float(all_sum(value))
        if better(self.metric, score, float(objective.best_score)):
            objective.best_score.fill_(score)
            objective.best_step.fill_(step)
            if accelerator.is_main_process:
                self.keep(objective.result)
        return {f"validation_{name}": number for name, number in scores.items()}

    def stops(self, step: int) -> bool:
        """Whether `train.patience` validations have passed since the best; known at those steps only."""
        return (
            self.config.patience > 0
            and self.due(step)
            and step - int(self.objective.best_step) >= self.config.patience * self.every
        )
