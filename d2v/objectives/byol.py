"""BYOL (arXiv 2006.07733): predict the EMA teacher's projection of the other view; no negatives.

B samples of this process, P width of the projections.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.multi_view import MultiView, embedding
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.schedules import cosine_between
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths of the heads and the teacher; the published values of 1000 epochs."""

    num_views: ClassVar[int] = 2

    name: str = setting("byol", "Which method.")
    hidden_dim: int = setting(4096, "Width of the hidden layer of projector and predictor.", least=1, limit=1_000_000)
    out_dim: int = setting(256, "Width of the projections.", least=1, limit=1_000_000)
    ema_decay: float = of_teacher(
        0.996, "The teacher's at the start; it reaches 1 at the last step by half a cosine.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a decay outside [0, 1], or no width."""
        check_fields(self, "objective")


class BYOL(MultiView):
    """Student encoder and projector, their EMA, and a predictor on the student's side."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        dim, hidden, out = encoder.trunk.config.dim, config.hidden_dim, config.out_dim
        super().__init__(encoder, projector=projector([dim, hidden, out], bias=True, last="bare"))
        self.config = config
        self.predictor = projector([out, hidden, out], bias=True, last="bare")

    def forward(self, views: list[View]) -> Loss:
        """Both directions: 2 - 2 cos(prediction of one view, teacher's projection of the other), summed over samples
        (equation 2)."""
        self.check(views)
        online = [self.predictor(embedding(self.student, view)) for view in views]  # (B, P) each
        with torch.no_grad():
            targets = [embedding(self.teacher, view) for view in views]
        total = distance(online[0], targets[1]) + distance(online[1], targets[0])
        metrics = {"target_spread": spread_of(targets[0]), "prediction_spread": spread_of(online[0])}
        return Loss(total, torch.full((), len(online[0]), device=total.device), metrics)

    def ema_decay(self, step: int, steps: int) -> float:
        """Half a cosine from ema_decay to 1 over the run."""
        return cosine_between(step, steps, self.config.ema_decay, 1.0)


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum over samples of the squared distance of unit vectors, two (B, P) -> ()."""
    cosines = F.cosine_similarity(prediction.float(), target.float(), dim=1)
    return (2 - 2 * cosines).sum()


def build(encoder: D2vModel, config: Config) -> BYOL:
    """The objective around an encoder."""
    return BYOL(encoder, config)
