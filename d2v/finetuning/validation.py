"""Validation during fine-tuning: scores of a labelled split at intervals, the best model, and when to stop.

The best score, what chooses among equal ones, and the step are buffers of the objective, so that a resumed run chooses
and stops as one that was never interrupted.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator

from d2v.finetuning.config import TuneConfig
from d2v.finetuning.objective import Supervised
from d2v.finetuning.scores import LOWER_IS_BETTER, among_equals, better
from d2v.models.task_models import TaskModel
from d2v.protocols import Score, ScoredSplit
from d2v.reading import Reader
from d2v.training.distributed import all_sum

BATCH_SIZE = 64  # of scoring; changes no result


@torch.no_grad()
def outputs(
    model: TaskModel, split: ScoredSplit, batch_size: int, reader: Reader, device: torch.device | str = "cpu"
) -> tuple[ScoredSplit, list[np.ndarray]]:
    """The samples of a split that can be read, and in their order what the model says of each; see TaskModel.answers.

    In evaluation mode, samples of similar length together. ValueError: too many cannot be read.
    """
    lengths = split.samples.lengths
    order = np.argsort(np.zeros(len(split.indices)) if lengths is None else lengths[split.indices], kind="stable")
    training = model.training
    model.eval()
    answers: dict[int, np.ndarray] = {}  # by the place in the split
    batches = np.split(order, range(batch_size, len(order), batch_size))
    for places, view in reader.views(split.samples, np.asarray(split.indices), batches):
        for place, answer in zip(places, model.answers(view.to(device)), strict=True):
            answers[int(place)] = answer
    model.train(training)
    read = sorted(answers)
    return split.some(np.array(read, dtype=int)), [answers[place] for place in read]


def interval(train: TuneConfig) -> int:
    """Steps between validations."""
    return train.validate_every or max(1, train.steps // 20)


def is_scored(step: int, train: TuneConfig) -> bool:
    """Whether step `step` (0 is the first) ends with a validation; the last one does."""
    return (step + 1) % interval(train) == 0 or step + 1 == train.steps


def _unknown(metric: str, scores: Iterable[str]) -> str:
    return f"train.metric is {metric!r}; the scores of this task are {', '.join(scores)}"


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
        reader: Reader,
        keep: Callable[[TaskModel], None],
    ):
        self.objective, self.split, self.score = objective, split, score
        self.metric, self.batch_size, self.reader, self.keep = metric, batch_size, reader, keep
        self.config = objective.config
        self.every = interval(self.config)
        worst = float("inf") if metric in LOWER_IS_BETTER else float("-inf")
        objective.register_buffer("best_score", torch.tensor(worst))
        objective.register_buffer("best_among_equals", torch.tensor(float("inf")))
        objective.register_buffer("best_step", torch.tensor(0))

    def due(self, step: int) -> bool:
        """Whether this step ends with a validation."""
        return step % self.every == 0

    def check_metric(self) -> None:
        """Before the first step, by a few samples. ValueError: train.metric is none of the scores."""
        few = self.split.some(np.arange(min(8, len(self.split.indices))))
        split, logits = outputs(self.objective.result, few, self.batch_size, self.reader)
        if len(logits) > 1 and self.metric not in (scores := self.score(logits, split.labels)):
            raise ValueError(_unknown(self.metric, scores))

    def __call__(self, step: int, accelerator: Accelerator, whole: Supervised | None) -> dict[str, float]:
        """The scores as "validation_<name>", measured on the main process, of the objective with all its parameters.

        ValueError: train.metric is none of them.
        """
        objective, scores = self.objective, {}
        values = torch.zeros(2, device=accelerator.device)
        if whole is not None and accelerator.is_main_process:
            split, logits = outputs(whole.result, self.split, self.batch_size, self.reader, accelerator.device)
            scores = self.score(logits, split.labels)
            objective.train()
            if self.metric not in scores:
                raise ValueError(_unknown(self.metric, scores))
            values = values.new_tensor([scores[self.metric], among_equals(self.metric, scores)])
        score, other = all_sum(values).tolist()
        best, best_other = float(objective.best_score), float(objective.best_among_equals)
        if better(self.metric, score, best) or (score == best and other < best_other):
            objective.best_score.fill_(score)
            objective.best_among_equals.fill_(other)
            objective.best_step.fill_(step)
            if whole is not None and accelerator.is_main_process:
                self.keep(whole.result)
        return {f"validation_{name}": number for name, number in scores.items()}

    def stops(self, step: int) -> bool:
        """Whether `train.patience` validations have passed since the best; known at those steps only."""
        if self.config.patience <= 0 or not self.due(step):
            return False
        return step - int(self.objective.best_step) >= self.config.patience * self.every
