"""W-MSE (arXiv 2007.06346): views agree after parts of the batch were whitened, so that no two channels can be alike.

No negatives and no teacher.

N samples of all processes, V views, W rows that are whitened together, P width of the projections.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.multi_view import MultiView, generator_of_step, summary
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather_with_gradient
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths and whitening; the published values for CIFAR-10."""

    num_views: ClassVar[int] = 2

    name: str = setting("wmse", "Which method.")
    hidden_dim: int = setting(1024, "Width of the projector's hidden layer.", least=1, limit=1_000_000)
    out_dim: int = setting(64, "Width of the projections.", least=1, limit=1_000_000)
    sub_batch: int = setting(
        128, "Samples that are whitened together, at least 2 out_dim; it divides the batch.", least=2, limit=1_000_000
    )
    rounds: int = setting(1, "Random divisions of the batch, whose losses are averaged.", least=1, limit=1000)
    epsilon: float = setting(
        1e-4,
        "Share of the identity in the covariance; 0 as published, where few rows can be singular.",
        least=0,
        most=1,
    )

    def __post_init__(self):
        """ValueError: a number below its least, or too few rows to whiten."""
        check_fields(self, "objective")
        if self.sub_batch < 2 * self.out_dim:
            raise ValueError(
                f"objective.sub_batch is {self.sub_batch}; to whiten projections of width {self.out_dim} "
                f"(objective.out_dim) it must be at least {2 * self.out_dim}"
            )


class WMSE(MultiView):
    """One encoder and projector for all views."""

    def __init__(self, encoder: D2vModel, config: Config):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.out_dim]
        # whitening takes away what a bias of the last layer would add
        super().__init__(encoder, teacher=False, projector=projector(widths, last="bare"))
        self.config = config

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: as every method that compares views; batches that sub-batches do not fill."""
        super().check_batch(batch_size, parts)
        if batch_size % self.config.sub_batch:
            raise ValueError(
                f"train.batch_size is {batch_size}; it must be a multiple of objective.sub_batch, "
                f"{self.config.sub_batch}, the samples that are whitened together"
            )

    def forward(self, views: list[View]) -> Loss:
        """2 - 2 cos of the whitened rows, its mean over pairs of views, divisions and samples, times those of this
        process.

        All processes whiten all rows, which are few and narrow.
        """
        self.check(views)
        features = [summary(self.student["encoder"], view) for view in views]
        rows = self.student["projector"](torch.cat(features)).float().chunk(len(views))
        everything = [gather_with_gradient(z) for z in rows]  # (N, P) each
        generator, terms = generator_of_step(self.step, rows[0].device, self.seed), []
        for _ in range(self.config.rounds):
            order = torch.randperm(len(everything[0]), generator=generator, device=generator.device)
            white = [whitened(z[order], self.config.sub_batch, self.config.epsilon) for z in everything]
            terms += [2 - 2 * F.cosine_similarity(x, y, dim=1).mean() for x, y in combinations(white, 2)]
        count = torch.full((), len(rows[0]), device=rows[0].device)
        return Loss(count * torch.stack(terms).mean(), count, {"prediction_spread": spread_of(rows[0])})


def whitened(x: Tensor, size: int, epsilon: float) -> Tensor:
    """Each `size` rows in turn without mean and correlations: (N, P) -> (N, P), by the root of their covariance."""
    x = x.view(-1, size, x.shape[1])  # (N / W, W, P)
    x = x - x.mean(dim=1, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):
        covariance = x.mT @ x / (size - 1)  # (N / W, P, P)
        identity = torch.eye(x.shape[2], device=x.device)
        root, failed = torch.linalg.cholesky_ex((1 - epsilon) * covariance + epsilon * identity)
        white = torch.linalg.solve_triangular(root, x.mT, upper=False).mT
    # a root that does not exist is no error but nan: the loop leaves out the step
    return torch.where(failed.view(-1, 1, 1) == 0, white, torch.nan).flatten(0, 1)


def build(encoder: D2vModel, config: Config) -> WMSE:
    """The objective around an encoder."""
    return WMSE(encoder, config)
