"""SigLIP (arXiv 2303.15343): of each two samples of two modalities, do they belong together, yes or no?

Nothing is normalised over the batch, so that small batches do, and a sample may have several partners.

B samples of this process, N of all, P width of the space.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.contrastive import cosines
from d2v.objectives.common.pairing import FREEZE, Pairing, right_ones
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather_with_gradient
from d2v.types import Loss, View


@dataclass
class Config:
    """Width of the space, and where scale and bias start, as published."""

    name: str = setting("siglip", "Which method.")
    projection_dim: int = setting(512, "Width of the space that both modalities share.", least=1, limit=1_000_000)
    temperature: float = setting(0.1, "Where the learned one starts; the scale is its inverse.", least=0.001, most=1000)
    bias: float = setting(-10.0, "Where the learned bias starts: low, as most pairs are wrong.", least=-1000, most=1000)
    freeze: list[str] = setting([], FREEZE)

    def __post_init__(self):
        """ValueError: a width below 1, or a temperature or bias out of range."""
        check_fields(self, "objective")


class SigLip(Pairing):
    """Student encoder, projections, scale and bias."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: as Pairing."""
        super().__init__(encoder, config)
        self.bias = nn.Parameter(torch.tensor(config.bias))  # () of no dimension: no decay

    def forward(self, views: list[View]) -> Loss:
        """Equation 1, summed over this process's rows: -sum_ij log sigmoid(z_ij (s cos_ij + b)), z 1 for those that
        belong together and -1 for others. Its count is B, as there."""
        first, second = self.vectors(views)  # (B, P) each
        right = right_ones(views[0], len(first))  # (B, N)
        similarity = cosines(first, gather_with_gradient(second))  # (B, N)
        logits = self.log_scale.exp() * similarity + self.bias
        total = -F.logsigmoid(torch.where(right, logits, -logits)).sum()
        metrics = {**self.described(similarity, right, first, second), "bias": self.bias.detach()}
        return Loss(total, torch.full((), len(first), device=total.device), metrics)


def build(encoder: D2vModel, config: Config) -> SigLip:
    """The objective around an encoder."""
    return SigLip(encoder, config)
