"""CLIP (arXiv 2103.00020): find each sample's partner of the other modality among those of the whole global batch.

B samples of this process, N of all, P width of the space.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.objectives.common.contrastive import cosines
from d2v.objectives.common.pairing import FREEZE, Pairing, found, right_ones
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather_with_gradient
from d2v.types import Loss, View


@dataclass
class Config:
    """Width of the space and the temperature; the published values, whose batches had 32,768 pairs."""

    name: str = setting("clip", "Which method.")
    projection_dim: int = setting(512, "Width of the space that both modalities share.", least=1, limit=1_000_000)
    temperature: float = setting(0.07, "Where the learned one starts; it stays between 0.01 and 1.", least=0.01, most=1)
    freeze: list[str] = setting([], FREEZE)

    def __post_init__(self):
        """ValueError: a width below 1, or a temperature out of range."""
        check_fields(self, "objective")


class Clip(Pairing):
    """Student encoder, projections, and the scale, between 1 and 100."""

    log_scales: ClassVar[tuple[float, float]] = (0.0, math.log(100))

    def forward(self, views: list[View]) -> Loss:
        """The mean of both directions' cross entropies (figure 3 of the paper), summed over this process's pairs."""
        first, second = self.vectors(views)  # (B, P) each
        right = right_ones(views[0], len(first))  # (B, N)
        to_second = cosines(first, gather_with_gradient(second))  # (B, N)
        to_first = cosines(second, gather_with_gradient(first))  # (B, N)
        scale = self.log_scale.exp()
        total = (cross_entropy(scale * to_second, right) + cross_entropy(scale * to_first, right)) / 2
        metrics = self.described(to_second, right, first, second)
        metrics["accuracy"] = (found(to_second.detach(), right) + found(to_first.detach(), right)) / 2
        return Loss(total, torch.full((), len(first), device=total.device), metrics)


def cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of -log softmax at the right candidates, the mean over them where there are several: two (B, N) ->
    ().

        for each row i: loss += -sum_j in right(i) log softmax(logits[i])[j] / |right(i)|

    One right candidate: CLIP. Several: as in supervised contrast (arXiv 2004.11362, equation 2) and UniCL (arXiv
    2204.03610); the least that it can be is log of their number.
    """
    return F.cross_entropy(logits, right.float() / right.sum(dim=1, keepdim=True), reduction="sum")


def build(encoder: D2vModel, config: Config) -> Clip:
    """The objective around an encoder."""
    return Clip(encoder, config)
