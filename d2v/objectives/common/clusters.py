"""Clusters that learn in passing from how Sinkhorn's algorithm shares a batch out among them (CAPI, arXiv 2502.08769).

B samples of this process, T tokens, D width, C clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.objectives.common.prototypes import cross_entropy, sinkhorn_of_logits
from d2v.training.distributed import all_sum

MOST = 8  # clusters to a sample at each place, beyond which assignments are an accident of the batch
FEWEST = 4  # tokens to a cluster, where all places are together


class Clusters(nn.Module):
    """A linear layer from unit features to the logits of C clusters.

    `positionwise`: tokens are assigned among those of their place; where few samples of a batch reach a place, these
    are nearly alike to all clusters.
    """

    def __init__(self, dim: int, num_clusters: int, *, positionwise: bool, temperature: float, iterations: int):
        super().__init__()
        self.positionwise, self.temperature, self.iterations = positionwise, temperature, iterations
        self.layer = nn.Linear(dim, num_clusters)
        nn.init.normal_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), normed without weights and to unit length -> (B, T, C), float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return self.layer(F.normalize(F.layer_norm(x, x.shape[-1:]), dim=2))

    @torch.no_grad()
    def assignments(self, logits: Tensor, padding: Tensor | None) -> Tensor:
        """Sinkhorn's shares (B, T, C) among the tokens of all ranks, 0 in padding (B, T)."""
        if self.positionwise:
            return sinkhorn_of_logits(logits, self.temperature, self.iterations, padding)
        flat = None if padding is None else padding.flatten()
        return sinkhorn_of_logits(logits.flatten(0, 1), self.temperature, self.iterations, flat).view_as(logits)

    def check_size(self, samples: int, places: int | None) -> None:
        """ValueError: a global batch of so many samples, of so many tokens each, has too little to share out."""
        codes = self.layer.out_features
        least = f"objective.num_codes is {codes}; Sinkhorn's algorithm shares"
        if self.positionwise and codes > MOST * samples:
            raise ValueError(
                f"{least} {samples} samples (train.batch_size) out among them at each place: "
                f"at most {MOST * samples}, or objective.positionwise=false"
            )
        if not self.positionwise and places is not None and samples * places < FEWEST * codes:
            raise ValueError(
                f"{least} the {samples * places} tokens of a batch (train.batch_size times {places}) out among them, "
                f"and each needs {FEWEST}: at most {samples * places // FEWEST}"
            )


def clusters_loss(
    targets: Tensor, logits: Tensor, temperature: float, count: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean cross entropy over the tokens of all ranks, (B, T, C) each, as part of a sum of `count` () predictions;
    and the mean itself, of this rank's.

    Added to the sum over predictions it is divided with it, by the count of all ranks. Targets are 0 in `padding`.
    """
    tokens = (
        torch.full((), float(logits[..., 0].numel()), device=logits.device) if padding is None else (~padding).sum()
    )
    total = cross_entropy(targets, logits, temperature).sum()
    return total * (all_sum(count.float()) / all_sum(tokens.float())), total.detach() / tokens
