"""Barlow Twins (arXiv 2103.03230): the correlations of two views' channels over the batch become the identity.

No negatives and no teacher.

B samples of this process, N of all, P width of the projections.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.multi_view import MultiView, embedding
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, setting
from d2v.training.distributed import mean_with_gradient
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths and the one weight; the published values."""

    num_views: ClassVar[int] = 2

    name: str = setting("barlow", "Which method.")
    hidden_dim: int = setting(8192, "Width of the projector's two hidden layers.", least=1, limit=1_000_000)
    out_dim: int = setting(
        8192, "Width of the projections, whose correlations are a matrix of its square.", least=1, limit=1_000_000
    )
    redundancy: float = setting(0.0051, "Weight of the correlations of different channels.", least=0, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a width below 1, or a negative weight."""
        check_fields(self, "objective")


class Barlow(MultiView):
    """One encoder and projector for both views."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(encoder, teacher=False, projector=projector(widths, last="bare"))
        self.config = config

    def forward(self, views: list[View]) -> Loss:
        """(1 - correlation)^2 of each channel with itself, and the weighted squares of the others (equation 1).

        It is one number for the whole batch, here times B, so that total / count is it.
        """
        self.check(views)
        first, second = (embedding(self.student, view).float() for view in views)  # (B, P) each
        on, off = terms(first, second)
        count = torch.full((), len(first), device=first.device)
        metrics = {"on_diagonal": on.detach(), "off_diagonal": off.detach(), "prediction_spread": spread_of(first)}
        return Loss(count * (on + self.config.redundancy * off), count, metrics)


def terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (1 - c)^2 over the correlations c of each channel with itself, and of c^2 over those of different ones.

    Over the N rows of all processes; (B, P) each -> (), ().
    """
    with torch.autocast(first.device.type, enabled=False):
        correlations = mean_with_gradient(standardised(first).T @ standardised(second) / len(first))  # (P, P)
    same = correlations.diagonal()
    return (1 - same).square().sum(), correlations.square().sum() - same.square().sum()


def standardised(x: Tensor) -> Tensor:
    """As by a batch norm without weights over the rows of all processes, (B, P) -> (B, P)."""
    centred = x - mean_with_gradient(x.mean(dim=0))
    return centred * torch.rsqrt(mean_with_gradient(centred.square().mean(dim=0)) + 1e-5)


def build(encoder: D2vModel, config: Config) -> Barlow:
    """The objective around an encoder."""
    return Barlow(encoder, config)
