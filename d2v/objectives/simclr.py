"""SimCLR (arXiv 2002.05709): find the other view of the same sample among both views of the whole global batch.

No teacher.

B samples of this process, N of all, D width, P that of the projections.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.contrastive import describe, info_nce, unit, within_batch
from d2v.objectives.common.multi_view import MultiView, each, summary
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather_with_gradient, mine
from d2v.types import Loss, View


@dataclass
class Config:
    """The published values for ImageNet; the temperature for CIFAR-10 is 0.5."""

    num_views: ClassVar[int] = 2

    name: str = setting("simclr", "Which method.")
    num_layers: int = setting(
        2, "Of the head; the second version of the paper (arXiv 2006.10029) has 3.", least=1, limit=100
    )
    hidden_dim: int = setting(
        0,
        "Width of the head's hidden layers; 0: the encoder's, as published.",
        least=0,
        limit=1_000_000,
        only={"num_layers": lambda layers: layers > 1},
        why="a head of one layer (objective.num_layers) has no hidden one",
    )
    out_dim: int = setting(128, "Width of the projections.", least=1, limit=1_000_000)
    temperature: float = setting(0.1, "Of the softmax.", above=0, limit=1000)

    def __post_init__(self):
        """ValueError: a size or temperature that is not positive, or a width that no layer has."""
        check_fields(self, "objective")


class SimCLR(MultiView):
    """Student encoder and projector; every batch norm sees both views of the whole batch."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        dim = encoder.trunk.config.dim
        widths = [dim, *[config.hidden_dim or dim] * (config.num_layers - 1), config.out_dim]
        super().__init__(encoder, teacher=False, projector=projector(widths, last="scale"))
        self.config = config

    def forward(self, views: list[View]) -> Loss:
        """NT-Xent: half the sum of cross entropies of both views (equation 1), so that total / count is the mean over
        all 2N views.

        The published code shows the sum of both views' means, twice as much.
        """
        self.check(views)
        features = torch.cat(each(views, lambda view: summary(self.student["encoder"], view)))  # (2B, D)
        one, other = unit(self.student["projector"](features)).chunk(2)  # (B, P) each
        first, second = gather_with_gradient(one), gather_with_gradient(other)  # (N, P) each
        similarity, labels = within_batch(first, second, mine(len(one), first.device))
        total = info_nce(similarity, labels, self.config.temperature) / 2
        return Loss(total, torch.full((), len(one), device=total.device), describe(similarity, labels, one, other))


def build(encoder: D2vModel, config: Config) -> SimCLR:
    """The objective around an encoder."""
    return SimCLR(encoder, config)
