"""LeJEPA (arXiv 2511.08544): all views of a sample meet at the mean of its global ones, and the rows of each view are
spread like a Gaussian. No teacher, no negatives, no predictor.

B samples of this process, V views, P width of the projections, S directions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.gaussian import directions, invariance, sigreg
from d2v.objectives.common.multi_view import MultiView, generator_of_step, num_whole, projections
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths, directions and the one weight."""

    num_views: ClassVar[int] = 2

    name: str = setting("lejepa", "Which method.")
    hidden_dim: int = setting(2048, "Width of the projector's two hidden layers.", least=1, limit=1_000_000)
    out_dim: int = setting(512, "Width of the projections; 16 in the published minimal run.", least=1, limit=1_000_000)
    global_views: int = setting(2, "How many of the first views make the mean that all meet at.", least=2, limit=1000)
    weight: float = setting(0.05, "Of SIGReg; 1 - weight is that of the distance of views.", least=0, most=1)
    num_directions: int = setting(1024, "Directions that SIGReg looks along in each step.", least=1, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a number below its least, or a weight above 1."""
        check_fields(self, "objective")


class LeJEPA(MultiView):
    """One encoder and projector for all views; local ones are smaller."""

    def __init__(self, encoder: D2vModel, config: Any):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(encoder, teacher=False, projector=projector(widths, bias=True))
        self.config = config

    def check(self, views: list[View]) -> None:
        """ValueError: fewer whole views than two, or than there are to be global ones."""
        super().check(views)
        wanted, found = self.config.global_views, num_whole(views)
        if found < wanted:
            raise ValueError(f"objective.global_views is {wanted}; data.views makes {found}: name as many there")

    def forward(self, views: list[View]) -> Loss:
        """(1 - weight) invariance + weight spread, times B, so that total / count is it."""
        self.check(views)
        config, device = self.config, next(self.parameters()).device
        rows = [z.float() for z in projections(self.student, views)]  # (B, P) each
        along = directions(config.out_dim, config.num_directions, generator_of_step(self.step, device, self.seed))
        apart = invariance(rows, config.global_views)
        spread, terms = self.spread(rows, along)
        count = torch.full((), len(rows[0]), device=device)
        metrics = {"invariance": apart.detach(), "prediction_spread": spread_of(rows[0]), **terms}
        return Loss(count * ((1 - config.weight) * apart + config.weight * spread), count, metrics)

    def spread(self, rows: list[Tensor], along: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """SIGReg of the rows of each view, (B, P), along (P, S): the mean over views, (), and what is logged of it."""
        value = torch.stack([sigreg(z, along) for z in rows]).mean()
        return value, {"sigreg": value.detach()}


def build(encoder: D2vModel, config: Config) -> LeJEPA:
    """The objective around an encoder."""
    return LeJEPA(encoder, config)
