"""Contrastive Clustering (arXiv 2009.09687): rows of the batch find their other view, and so do columns of the soft
cluster assignments.

B samples of this process, N of all, D width of the encoder, P of the projections, C clusters.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.contrastive import nt_xent
from d2v.objectives.common.multi_view import MultiView, summary
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather_with_gradient
from d2v.types import Loss, View


@dataclass
class Config:
    """Heads and temperatures; the published values. The heads' hidden width is the encoder's."""

    num_views: ClassVar[int] = 2

    name: str = setting("clustering", "Which method.")
    out_dim: int = setting(128, "Width of the instance head's output.", least=1, limit=1_000_000)
    num_clusters: int = setting(
        10, "Clusters: as many as the data has classes, where they are known.", least=2, limit=10_000_000
    )
    instance_temperature: float = setting(0.5, "Of the softmax over samples.", above=0, limit=1000)
    cluster_temperature: float = setting(1.0, "Of the softmax over clusters.", above=0, limit=1000)

    def __post_init__(self):
        """ValueError: fewer than two clusters, no width, or a temperature that is not above 0."""
        check_fields(self, "objective")


class Clustering(MultiView):
    """One encoder for both views, an instance head and a cluster head; no teacher, no batch norm of its own."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        dim = encoder.trunk.config.dim
        instance = projector([dim, dim, config.out_dim], norm=False, bias=True)
        cluster = projector([dim, dim, config.num_clusters], norm=False, bias=True)
        super().__init__(encoder, teacher=False, instance=instance, cluster=cluster)
        self.config = config

    def forward(self, views: list[View]) -> Loss:
        """Instance loss + cluster loss + entropy term of the global batch (equation 7), times the process's samples."""
        self.check(views)
        features = [summary(self.student["encoder"], view) for view in views]  # (B, D) each
        rows = [gather_with_gradient(self.student["instance"](x)) for x in features]  # (N, P)
        logs = [gather_with_gradient(self.student["cluster"](x).float().log_softmax(dim=1)) for x in features]  # (N, C)
        instance = nt_xent(rows[0], rows[1], self.config.instance_temperature)
        cluster = nt_xent(logs[0].exp().T, logs[1].exp().T, self.config.cluster_temperature)
        entropy = missing_entropy(logs[0]) + missing_entropy(logs[1])
        samples = torch.full((), len(features[0]), device=instance.device)
        metrics = {
            "instance_loss": instance.detach(),
            "cluster_loss": cluster.detach(),
            "missing_entropy": entropy.detach(),
            # 1 / C: undecided; 1: each sample is of one cluster
            "confidence": logs[0].detach().exp().amax(dim=1).mean(),
            "prediction_spread": spread_of(rows[0]),
        }
        return Loss((instance + cluster + entropy) * samples, samples, metrics)


def missing_entropy(logs: Tensor) -> Tensor:
    """What the entropy of the clusters' shares lacks to ln C, from log assignments (N, C): 0 if they are of one size,
    ln C if one holds all."""
    # as logarithms: the gradient of an empty cluster stays finite
    shares = logs.logsumexp(dim=0) - math.log(len(logs))  # (C,)
    return math.log(logs.shape[1]) + (shares.exp() * shares).sum()


def build(encoder: D2vModel, config: Config) -> Clustering:
    """The objective around an encoder."""
    return Clustering(encoder, config)
