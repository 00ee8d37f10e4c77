"""SigLIP (arXiv 2303.15343): whether two rows belong together, for every pair of the global batch by itself.

Several rows may belong to one, so that classes may be the pairs, and batches may be small.

B rows of this process, N of all, P width of the space.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.paired import FROZEN, Paired, found, of_all, positives
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """The published start of scale and bias."""

    name: str = setting("siglip", "Which method.")
    projection_dim: int = setting(128, "Width of the common space.", least=1, limit=1_000_000)
    scale: float = setting(10.0, "What cosines are multiplied by at the start; it is learned.", above=0, limit=1000)
    bias: float = setting(
        -10.0, "What is then added at the start, as most pairs do not belong together; it is learned.", limit=1000
    )
    frozen: list[str] = setting([], FROZEN)

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class SigLIP(Paired):
    """Both encoders, their projections, and scale and bias of the cosines."""

    def __init__(self, encoder: D2vModel, config: Config):
        super().__init__(encoder, config, config.projection_dim, config.frozen)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def forward(self, views: list[View]) -> Loss:
        """Minus the log-likelihood of all N pairs of each row, summed over rows (equation 1)."""
        self.check(views)
        first, second = self.vectors(views)
        wanted = positives(views[0], len(first), first.device)  # (B, N)
        with torch.autocast(first.device.type, enabled=False):
            cosines = first @ of_all(second).T  # (B, N)
        logits = self.log_scale.exp() * cosines + self.bias
        sign = wanted.float() * 2 - 1
        total = -F.logsigmoid(sign * logits).sum()
        metrics = {
            "scale": self.log_scale.detach().exp(),
            "bias": self.bias.detach(),
            "found": found(cosines, wanted),
            "positive_cosine": cosines.detach()[wanted].mean(),
        }
        return Loss(total, torch.tensor(len(first), device=total.device), metrics)


def build(encoder: D2vModel, config: Config) -> SigLIP:
    """The objective around an encoder of two modalities."""
    return SigLIP(encoder, config)
