"""CLIP (arXiv 2103.00020): of all rows of the global batch, find the one that the other modality shows.

Where several rows belong together, their mean log-probability counts, as in supervised contrastive learning (SupCon,
arXiv 2004.11362, equation 2).

B rows of this process, N of all, P width of the space.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.paired import FROZEN, Paired, found, of_all, positives
from d2v.settings import check_fields, setting
from d2v.types import Loss, View

LARGEST = math.log(100)  # of the logarithm of the scale


@dataclass
class Config:
    """The published start of the scale."""

    name: str = setting("clip", "Which method.")
    projection_dim: int = setting(128, "Width of the common space.", least=1, limit=1_000_000)
    temperature: float = setting(
        0.07, "Of the softmax at the start; it is learned, and at least 0.01.", least=0.01, limit=1000
    )
    frozen: list[str] = setting([], FROZEN)

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class CLIP(Paired):
    """Both encoders, their projections, and the scale of the cosines."""

    def __init__(self, encoder: D2vModel, config: Config):
        super().__init__(encoder, config, config.projection_dim, config.frozen)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, views: list[View]) -> Loss:
        """The mean of the cross entropies of both directions, summed over rows."""
        self.check(views)
        first, second = self.vectors(views)
        scale = self.log_scale.clamp(max=LARGEST).exp()
        wanted = positives(views[0], len(first), first.device)  # (B, N)
        with torch.autocast(first.device.type, enabled=False):
            there, back = first @ of_all(second).T, second @ of_all(first).T  # (B, N) cosines
        total = (cross_entropy(scale * there, wanted) + cross_entropy(scale * back, wanted)) / 2
        metrics = {
            "scale": scale.detach(),
            "found": (found(there, wanted) + found(back, wanted)) / 2,
            "positive_cosine": there.detach()[wanted].mean(),
        }
        return Loss(total, torch.tensor(len(first), device=total.device), metrics)


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Minus the mean log-probability of the wanted candidates of each row, summed over rows; both (B, N)."""
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities * wanted).sum(dim=1).div(wanted.sum(dim=1)).sum()


def build(encoder: D2vModel, config: Config) -> CLIP:
    """The objective around an encoder of two modalities."""
    return CLIP(encoder, config)
