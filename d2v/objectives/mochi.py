"""MoCHi (arXiv 2010.01028): MoCo v2 with harder negatives, mixed from the queue's hardest and from the query.

B samples of this process, N of all, K keys in the queue, S mixed negatives of a query, P width of the keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.objectives import moco
from d2v.objectives.common.contrastive import cosines
from d2v.settings import setting
from d2v.training.distributed import mine, world_size


@dataclass
class Config(moco.Config):
    """MoCo's settings, and the counts of the paper's MoCHi (1024, 1024, 128)."""

    name: str = setting("mochi", "Which method.")
    hardest: int = setting(
        1024,
        "N of the paper: keys of the queue nearest to a query, from which its negatives are mixed.",
        least=1,
        limit=100_000_000,
    )
    mixed: int = setting(1024, "s of the paper: negatives that are mixed of two of them.", least=0, limit=10_000_000)
    mixed_with_query: int = setting(
        128,
        "s' of the paper: negatives that are mixed of one of them and, with less than half the weight, the query.",
        least=0,
        limit=10_000_000,
    )
    start_step: int = setting(
        75000, "Plain MoCo before it; the paper's 15 of 200 epochs of ImageNet, in batches of 256.", least=0
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds, nothing to mix, or more hardest keys than the queue holds."""
        super().__post_init__()
        if not self.mixed + self.mixed_with_query:
            raise ValueError(
                "objective.mixed and objective.mixed_with_query are both 0, which is moco: name one negative at least"
            )
        if self.hardest > self.queue_size:
            raise ValueError(
                f"objective.hardest is {self.hardest}; it must be between 1 and objective.queue_size, {self.queue_size}"
            )


class MoCHi(moco.MoCo):
    """MoCo, whose queries meet mixed negatives of their own too."""

    config: Config

    def begin_step(self, step: int, steps: int) -> None:
        """ValueError: a run that ends before anything is mixed."""
        super().begin_step(step, steps)
        if self.config.start_step >= steps:
            raise ValueError(
                f"objective.start_step is {self.config.start_step}; train.steps is {steps}: nothing would ever be mixed"
            )

    def compare(self, query: Tensor, key: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cosines with all candidates, (B, 1 + K + S), and where the positives are, (B,)."""
        similarity, labels = super().compare(query, key, generator)
        if self.step < self.config.start_step:
            return similarity, labels
        nearest = similarity[:, 1:].detach().topk(self.config.hardest, dim=1).indices  # (B, hardest)
        mixed = self.mix(query.detach(), self.queue.rows, nearest, generator)  # (B, S, P)
        return torch.cat([similarity, cosines(query, mixed)], dim=1), labels

    def mix(self, query: Tensor, queue: Tensor, nearest: Tensor, generator: torch.Generator) -> Tensor:
        """Unit negatives (B, S) of P from each query's `nearest` rows of the queue: convex mixtures of two, or of one
        and the query."""
        pairs, with_query = self.config.mixed, self.config.mixed_with_query  # s, s'
        local = mine(len(query), query.device)  # (B,)
        # drawn for the global batch, so that processes agree
        like = {"size": (len(query) * world_size(), pairs + with_query), "generator": generator, "device": query.device}
        first = torch.randint(self.config.hardest, **like)[local]  # (B, S)
        second = torch.randint(self.config.hardest, **like)[local]  # (B, S)
        weight = torch.rand(**like)[local]  # (B, S)
        weight[:, pairs:] /= 2  # the query never outweighs the key that it is mixed with
        one = queue[nearest.gather(1, first)]  # (B, S, P)
        other = torch.cat(
            [queue[nearest.gather(1, second[:, :pairs])], query.unsqueeze(1).expand(-1, with_query, -1)], dim=1
        )  # (B, S, P)
        return F.normalize(one.lerp(other, weight.unsqueeze(2)), dim=2)


def build(encoder: D2vModel, config: Config) -> MoCHi:
    """The objective around an encoder."""
    return MoCHi(encoder, config)
