"""Fine-tuning as an objective: a task model learns from labels; the moving average of its weights, if asked for, is the teacher."""

from dataclasses import dataclass, field

from d2v.config.schema import TrainConfig
from d2v.models.task_models import TaskModel
from d2v.objectives.common.objective import Objective, freeze
from d2v.types import Loss, View

LAYERS = ("all", "frozen")


@dataclass
class TuneConfig(TrainConfig):
    """Optimisation of fine-tuning; `init_from`, or model=PATH, is the encoder to start from, and without it training is from scratch."""

    layers: str = "all"  # frozen: the encoder is never trained, and has no dropout: a probe
    freeze: list[str] = field(default_factory=list)  # parts of the encoder that are never trained (prefixes of names)
    freeze_steps: int = 0  # for so many steps the head alone is trained
    ema_decay: float = 0.0  # > 0: the moving average of the weights is validated and exported
    metric: str = ""  # the score that chooses the best model, with its direction in d2v/finetuning/scores.py; "": the task's first
    validate_every: int = 0  # steps; 0: twenty times in a run
    patience: int = 0  # stop after so many validations without a better score; 0: never

    def __post_init__(self):
        """ValueError: as TrainConfig; settings that contradict one another."""
        super().__post_init__()
        if self.layers not in LAYERS:
            raise ValueError(f"train.layers is {self.layers!r}; it may be {', '.join(LAYERS)}")
        for name, good, allowed in (
            ("ema_decay", 0 <= self.ema_decay < 1, "at least 0 (no average) and below 1"),
            ("freeze_steps", 0 <= self.freeze_steps <= self.steps, f"between 0 and train.steps, {self.steps}"),
            ("validate_every", self.validate_every >= 0, "0 or more"),
            ("patience", self.patience >= 0, "0 or more"),
            ("update_teacher", self.update_teacher, "true: it is a control of pretraining"),
        ):
            if not good:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be {allowed}")
        if self.layers == "frozen" and (self.freeze or self.freeze_steps or self.layer_decay != 1):
            raise ValueError(
                "train.layers=frozen trains the head alone: train.freeze, train.freeze_steps and train.layer_decay have no place beside it"
            )


class Supervised(Objective):
    """The task model's own loss; what is frozen has no gradient."""

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
        return (self.teacher if self.config.ema_decay else self.student)["model"]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> "Supervised":
        """A probe reads the features of evaluation mode."""
        super().train(mode)
        if self.probe:
            self.student["model"].encoder.eval()
        return self

    def begin_step(self, step: int, steps: int) -> None:
        """The encoder thaws at step `freeze_steps`."""
        if self.config.freeze_steps:
            for parameter in self.thawing:
                parameter.requires_grad_(step >= self.config.freeze_steps)

    def forward(self, views: list[View]) -> Loss:
        """The summed loss of one labelled view."""
        (view,) = views
        model = self.student["model"]
        assert view.labels is not None
        total, count = model.loss(model(view._replace(labels=None)).logits, view.labels, view.padding)
        return Loss(total, count, {})

    def ema_decay(self, step: int, steps: int) -> float:
        """The same at every step."""
        return self.config.ema_decay
