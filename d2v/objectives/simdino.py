"""SimDINO (arXiv 2502.10385): DINO's views and teacher with cosines in place of prototypes; the rows keep a high coding
rate in place of centre and temperatures.

B samples of this process, N of all, V views, D width of the encoder, P that of the unit vectors.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.objectives.common.contrastive import unit
from d2v.objectives.common.multi_view import MultiView, projections
from d2v.objectives.common.prototypes import bottleneck
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.distributed import mean_with_gradient, world_size
from d2v.training.schedules import cosine_between
from d2v.types import Loss, View


@dataclass
class Config:
    """Head, coding rate and teacher; the published values."""

    num_views: ClassVar[int] = 2

    name: str = setting("simdino", "Which method.")
    hidden_dim: int = setting(2048, "Width of the head's hidden layers.", least=1, limit=1_000_000)
    out_dim: int = setting(256, "Width of the unit vectors that are compared.", least=1, limit=1_000_000)
    # use_bn_in_head, as in DINO
    head_norm: bool = setting(False, "Batch norms in the head, for convolutional networks.")
    rate_weight: float = setting(
        0.5,
        "Of the coding rate; the published code's 1, whose logarithm of a determinant lacks a factor of 2.",
        least=0,
        limit=1_000_000,
    )
    epsilon: float = setting(0.5, "Distortion of the coding rate.", above=0, limit=1000)
    ema_decay: float = of_teacher(
        0.996, "The teacher's at the start; it reaches 1 at the last step by half a cosine.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a decay outside [0, 1], or a number that must be positive."""
        check_fields(self, "objective")


class SimDINO(MultiView):
    """Student encoder and head, and their EMA.

    The first two views are global: the teacher sees them, the student all views.
    """

    def __init__(self, encoder: D2vModel, config: Config):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.hidden_dim, config.out_dim]
        super().__init__(encoder, projector=bottleneck(widths, norm=config.head_norm))
        self.config = config

    def forward(self, views: list[View]) -> Loss:
        """-cos of each global view's target with every other view, its mean over pairs and samples, less the
        weighted coding rate of the global views, all times B.

        The rate is of the mean of student and teacher (expa_type 1 of the published code), over the global batch; the
        code's is of the rows of each process, unless it is told to reduce them.
        """
        self.check(views)
        rows = [unit(z) for z in projections(self.student, views)]  # (B, P) each
        with torch.no_grad():
            targets = [unit(z) for z in projections(self.teacher, views[:2])]
        pairs = [(i, j) for i, j in product(range(2), range(len(rows))) if i != j]
        cosine = torch.stack([(targets[i] * rows[j]).sum(dim=1).mean() for i, j in pairs]).mean()
        means = [(row + target) / 2 for row, target in zip(rows, targets, strict=False)]
        rate = torch.stack([coding_rate(mean, self.config.epsilon) for mean in means]).mean()
        count = torch.full((), len(rows[0]), device=rate.device)
        metrics = {
            "cosine": cosine.detach(),
            "coding_rate": rate.detach(),
            "target_spread": spread_of(targets[0]),
            "prediction_spread": spread_of(rows[0]),
        }
        return Loss(count * (-cosine - self.config.rate_weight * rate), count, metrics)

    def ema_decay(self, step: int, steps: int) -> float:
        """Half a cosine from ema_decay to 1 over the run."""
        return cosine_between(step, steps, self.config.ema_decay, 1.0)


def coding_rate(z: Tensor, epsilon: float) -> Tensor:
    """(P + N) / (P N) log det(I + P / (N epsilon) Z^T Z) of the rows of all processes, (B, P) -> ().

    Of 256 random unit rows of width 256 it is 1.77, of equal ones 0.05.
    """
    rows, width = len(z) * world_size(), z.shape[1]
    with torch.autocast(z.device.type, enabled=False):
        covariance = mean_with_gradient(z.T @ z / len(z))  # (P, P), Z^T Z / N
    # a root that does not exist is no error but nan: the loop leaves out the step
    root, failed = torch.linalg.cholesky_ex(torch.eye(width, device=z.device) + width / epsilon * covariance)
    log_determinant = 2 * root.diagonal().log().sum()
    return (width + rows) / (width * rows) * torch.where(failed == 0, log_determinant, torch.nan)


def build(encoder: D2vModel, config: Config) -> SimDINO:
    """The objective around an encoder."""
    return SimDINO(encoder, config)
