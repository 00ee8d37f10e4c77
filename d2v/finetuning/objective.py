"""Fine-tuning as an objective: a task model learns from labels.

The teacher, if one is asked for, is the moving average of its weights.
"""

from torch import Tensor

from d2v.finetuning.config import TuneConfig
from d2v.models.task_models import TaskModel
from d2v.objectives.common.objective import Objective, freeze
from d2v.types import Loss, View


class Supervised(Objective):
    """The task model's own loss; what is frozen has no gradient."""

    teacher_sees_batches = False
    best_score: Tensor  # () each, which a Validation registers and keeps
    best_among_equals: Tensor
    best_step: Tensor

    def __init__(self, model: TaskModel, config: TuneConfig):
        """ValueError: a part to freeze that the encoder does not have."""
        super().__init__(teacher=config.ema_decay > 0, model=model)
        self.config, self.probe = config, config.layers == "frozen"
        freeze(config.freeze, model.encoder)
        if self.probe:
            model.encoder.requires_grad_(False)
        self.thawing = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]

    @property
    def result(self) -> TaskModel:
        """What is validated and exported: the average of the weights, or the weights."""
        return (self.teacher if self.config.ema_decay else self.student)["model"]

    def train(self, mode: bool = True) -> "Supervised":
        """A probe reads the features of evaluation mode."""
        super().train(mode)
        if self.probe:
            self.student["model"].encoder.eval()
        return self

    def begin_step(self, step: int, steps: int) -> None:
        """The encoder thaws at step `freeze_steps`."""
        super().begin_step(step, steps)
        if self.config.freeze_steps:
            for parameter in self.thawing:
                parameter.requires_grad_(step >= self.config.freeze_steps)

    def forward(self, views: list[View]) -> Loss:
        """The summed loss of one labelled view."""
        (view,) = views
        total, count = self.student["model"].learn(view)
        return Loss(total, count, {})

    def ema_decay(self, step: int, steps: int) -> float:
        """A constant: train.ema_decay."""
        return self.config.ema_decay
