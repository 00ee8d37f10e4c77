"""VICReg (arXiv 2105.04906): two views agree, every channel varies over the batch, and no two vary together.

No negatives and no teacher.

B samples of this process, N of all, P width of the projections.
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
from d2v.settings import check_fields, setting
from d2v.training.distributed import mean_with_gradient, world_size
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths and the weights of the three terms; the published values."""

    num_views: ClassVar[int] = 2

    name: str = setting("vicreg", "Which method.")
    hidden_dim: int = setting(8192, "Width of the projector's two hidden layers.", least=1, limit=1_000_000)
    out_dim: int = setting(
        8192, "Width of the projections, whose covariance is a matrix of its square.", least=1, limit=1_000_000
    )
    invariance: float = setting(25.0, "Weight of the squared distance of the views.", least=0, limit=1_000_000)
    variance: float = setting(
        25.0,
        "Weight of what each channel's standard deviation lacks to 1, the mean of both views.",
        least=0,
        limit=1_000_000,
    )
    covariance: float = setting(
        1.0, "Weight of the squared covariances of different channels, the sum of both views.", least=0, limit=1_000_000
    )

    def __post_init__(self):
        """ValueError: a width below 1, or a negative weight."""
        check_fields(self, "objective")


class VICReg(MultiView):
    """One encoder and projector for both views."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(encoder, teacher=False, projector=projector(widths, bias=True, last="bare"))
        self.config = config

    def forward(self, views: list[View]) -> Loss:
        """Invariance, variance and covariance (equation 6), times B, so that total / count is their sum.

        As the published code has it: the variance is the mean of both views, the covariance their sum.
        """
        self.check(views)
        first, second = (embedding(self.student, view).float() for view in views)  # (B, P) each
        distance = F.mse_loss(first, second)
        missing, shared = terms(first)
        missing_of_second, shared_of_second = terms(second)
        missing, shared = (missing + missing_of_second) / 2, shared + shared_of_second
        config, count = self.config, torch.full((), len(first), device=first.device)
        value = config.invariance * distance + config.variance * missing + config.covariance * shared
        metrics = {
            "invariance": distance.detach(),
            "missing_std": missing.detach(),
            "covariance": shared.detach(),
            "prediction_spread": spread_of(first),
        }
        return Loss(count * value, count, metrics)


def terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a view (B, P), over the N rows of all processes: mean_p relu(1 - sqrt(var_p + 1e-4)), and the sum of the
    squared covariances of different channels over P."""
    rows = len(x) * world_size()  # N
    centred = x - mean_with_gradient(x.mean(dim=0))
    with torch.autocast(x.device.type, enabled=False):
        covariance = mean_with_gradient(centred.T @ centred / len(x)) * rows / (rows - 1)  # (P, P)
    variance = covariance.diagonal()  # (P,)
    missing = F.relu(1 - (variance + 1e-4).sqrt()).mean()
    return missing, (covariance.square().sum() - variance.square().sum()) / x.shape[1]


def build(encoder: D2vModel, config: Config) -> VICReg:
    """The objective around an encoder."""
    return VICReg(encoder, config)
