"""DINO (arXiv 2104.14294): each view says which prototypes the EMA teacher, centred and sharpened, gives to another,
global view.

B samples of this process, V views, D width of the encoder, K prototypes.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.multi_view import MultiView, each, summary
from d2v.objectives.common.prototypes import PrototypeHead, across_views, sharpened, usage
from d2v.objectives.common.queues import Center
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.schedules import cosine_between, linear_decay
from d2v.types import Loss, View


@dataclass
class Config:
    """Head, temperatures, centre and teacher; the published values.

    What ends in `share` is of train.steps, where the paper counts epochs.
    """

    num_views: ClassVar[int] = 2

    name: str = setting("dino", "Which method.")
    hidden_dim: int = setting(2048, "Width of the head's hidden layers.", least=1, limit=1_000_000)
    bottleneck_dim: int = setting(
        256, "Width of the unit vectors that prototypes are compared with.", least=1, limit=1_000_000
    )
    # use_bn_in_head; without it the features of convolutional networks, all alike at first, tell samples apart late
    head_norm: bool = setting(False, "Batch norms in the head, for convolutional networks.")
    num_prototypes: int = setting(65536, "Outputs of the head.", least=1, limit=100_000_000)
    frozen_gain: bool = setting(
        True, "norm_last_layer: prototypes stay unit vectors; the longer runs of ViT-S train their norms."
    )
    frozen_share: float = setting(0.01, "How long prototypes stay as they are: 1 epoch of 100.", least=0, most=1)
    student_temperature: float = setting(0.1, "Of the student's softmax.", above=0, limit=1000)
    start_temperature: float = setting(
        0.04,
        "Of the teacher's softmax at the start; linear to teacher_temperature.",
        above=0,
        limit=1000,
        only={"warmup_share": True},
    )
    teacher_temperature: float = setting(0.07, "Of the teacher's softmax after warmup_share.", above=0, limit=1000)
    warmup_share: float = setting(0.1, "How long the teacher's temperature rises: 30 epochs of 300.", least=0, most=1)
    center_momentum: float = setting(0.9, "Share of the old centre in the new one.", least=0, most=1)
    ema_decay: float = of_teacher(
        0.996,
        "The teacher's at the start; it reaches 1 at the last step by half a cosine. Batches of 256 and fewer: 0.9995.",
        least=0,
        most=1,
    )

    def __post_init__(self):
        """ValueError: a decay or a share outside [0, 1], or a number that must be positive."""
        check_fields(self, "objective")


class DINO(MultiView):
    """Student encoder and head, and their EMA.

    The first two views are global: the teacher sees them, the student all views.
    """

    def __init__(self, encoder: D2vModel, config: Config):
        dim = encoder.trunk.config.dim
        sizes = (dim, config.hidden_dim, config.bottleneck_dim, config.num_prototypes)
        head = PrototypeHead(*sizes, frozen_gain=config.frozen_gain, norm=config.head_norm)
        super().__init__(encoder, head=head)
        self.config = config
        self.center = Center(config.num_prototypes, config.center_momentum)
        self.begin_step(0, 1)

    def begin_step(self, step: int, steps: int) -> None:
        """The teacher's temperature: linear in the step (the paper's code: in the epoch)."""
        super().begin_step(step, steps)
        config = self.config
        self.temperature = linear_decay(
            step, config.start_temperature, config.teacher_temperature, round(config.warmup_share * steps)
        )

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy between each global view's target and every other view, its mean over pairs, summed over
        samples (equation 3)."""
        self.check(views)
        logits = scores(self.student, views)
        with torch.no_grad():
            outputs = scores(self.teacher, views[:2])
            targets = [sharpened(rows, self.center.value, self.temperature) for rows in outputs]
        total = across_views(targets, logits, self.config.student_temperature)
        count = torch.full((), len(logits[0]), device=total.device)
        self.center.update(torch.cat(outputs))  # the next step's
        metrics = {
            **usage(torch.cat(targets), total / count),
            "center_norm": self.center.value.norm(),
            "target_spread": spread_of(outputs[0]),
            "prediction_spread": spread_of(logits[0]),
        }
        return Loss(total, count, metrics)

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """The teacher's decay and temperature, and whether the prototypes stand."""
        self.begin_step(step, steps)
        return (*super().of_length(step, steps), self.temperature, step < round(self.config.frozen_share * steps))

    def adjust_gradients(self, step: int, steps: int) -> None:
        """At first the prototypes have none, so that the optimizer passes over them, its moments too."""
        if step < round(self.config.frozen_share * steps):
            self.student["head"].prototypes.zero_grad()

    def ema_decay(self, step: int, steps: int) -> float:
        """Half a cosine from ema_decay to 1 over the run."""
        return cosine_between(step, steps, self.config.ema_decay, 1.0)


def scores(side: nn.ModuleDict, views: list[View]) -> list[Tensor]:
    """Logits (B, K) of each view by the student or the teacher."""
    summaries = torch.cat(each(views, partial(summary, side["encoder"])))  # (V * B, D)
    logits = side["head"](summaries)  # (V * B, K)
    return list(logits.chunk(len(views)))


def build(encoder: D2vModel, config: Config) -> DINO:
    """The objective around an encoder."""
    return DINO(encoder, config)
