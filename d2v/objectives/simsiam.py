"""SimSiam (arXiv 2011.10566): predict one's own projection of the other view, through which no gradient flows.

No negatives and no teacher.

B samples of this process, P width of the projections.
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
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths of the heads; the published values of ImageNet."""

    num_views: ClassVar[int] = 2

    name: str = setting("simsiam", "Which method.")
    projector_layers: int = setting(3, "Layers of the projector; 2 for CIFAR-10.", least=1, limit=100)
    out_dim: int = setting(2048, "Width of each of them.", least=1, limit=1_000_000)
    predictor_dim: int = setting(512, "Width of the predictor's bottleneck.", least=1, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a width or a depth below 1."""
        check_fields(self, "objective")


class SimSiam(MultiView):
    """One encoder and projector for both views, and a predictor, whose learning rate never falls."""

    exact_views = True
    constant_rate = ("predictor",)

    def __init__(self, encoder: D2vModel, config: Config):
        dim, out = encoder.trunk.config.dim, config.out_dim
        super().__init__(
            encoder, teacher=False, projector=projector([dim] + [out] * config.projector_layers, last="norm")
        )
        self.config = config
        self.predictor = projector([out, config.predictor_dim, out])

    def forward(self, views: list[View]) -> Loss:
        """Both directions: -cos(prediction of one view, projection of the other) / 2, summed over samples (equation 2);
        at best -1 each."""
        self.check(views)
        targets = [embedding(self.student, view) for view in views]  # (B, P) each
        predictions = [self.predictor(target) for target in targets]
        total = 0.5 * (
            difference(predictions[0], targets[1].detach()) + difference(predictions[1], targets[0].detach())
        )
        metrics = {"target_spread": spread_of(targets[0]), "prediction_spread": spread_of(predictions[0])}
        return Loss(total, torch.full((), len(targets[0]), device=total.device), metrics)


def difference(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum over samples of the negative cosine, two (B, P) -> () (equation 1)."""
    return -F.cosine_similarity(prediction.float(), target.float(), dim=1).sum()


def build(encoder: D2vModel, config: Config) -> SimSiam:
    """The objective around an encoder."""
    return SimSiam(encoder, config)
