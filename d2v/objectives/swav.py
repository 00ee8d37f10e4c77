"""SwAV (arXiv 2006.09882): each view predicts how Sinkhorn's algorithm shares out another view of the batch among
prototypes; no teacher.

B samples of this process, V views, P width of the projections, K prototypes, S rows of the queue.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.multi_view import MultiView, each, summary
from d2v.objectives.common.prototypes import across_views, sinkhorn, usage
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, setting
from d2v.training.distributed import gather, mine, world_size
from d2v.types import Loss, View


@dataclass
class Config:
    """Widths, assignment and queue; the published values.

    What ends in `share` is of train.steps, where the paper counts epochs.
    """

    num_views: ClassVar[int] = 2

    name: str = setting("swav", "Which method.")
    hidden_dim: int = setting(2048, "Width of the projector's hidden layer.", least=1, limit=1_000_000)
    out_dim: int = setting(128, "Width of the projections.", least=1, limit=1_000_000)
    num_prototypes: int = setting(3000, "Prototypes among which a batch is shared out.", least=1, limit=100_000_000)
    frozen_share: float = setting(0.01, "How long prototypes stay as they are: 1 epoch of 100.", least=0, most=1)
    temperature: float = setting(0.1, "Of the softmax of predictions.", above=0, limit=1000)
    epsilon: float = setting(
        0.05, "Sharpness of the assignments; 0.03 where the loss stays at ln K.", above=0, limit=1000
    )
    iterations: int = setting(3, "Of Sinkhorn's algorithm.", least=1, limit=1000)
    queue_size: int = setting(
        0,
        "Earlier samples that are assigned too, where a batch is small against K: 3840 for batches of 256.",
        least=0,
        limit=100_000_000,
    )
    queue_share: float = setting(
        0.075,
        "When the queue begins to fill; it is used once it is full: 15 epochs of 200.",
        least=0,
        most=1,
        only={"queue_size": True},
    )

    def __post_init__(self):
        """ValueError: a share outside [0, 1], or a number that must be positive."""
        check_fields(self, "objective")


class SwAV(MultiView):
    """Encoder, projector and prototypes. The first two views are assigned, all views predict."""

    queue: Tensor | None

    def __init__(self, encoder: D2vModel, config: Config):
        widths = [encoder.trunk.config.dim, config.hidden_dim, config.out_dim]
        super().__init__(encoder, teacher=False, projector=projector(widths, bias=True))
        self.config = config
        self.prototypes = nn.Linear(config.out_dim, config.num_prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, config.queue_size, config.out_dim) if config.queue_size else None)
        self.begin_step(0, 1)

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: as every method that compares views; a queue that does not hold whole batches."""
        super().check_batch(batch_size, parts)
        if self.config.queue_size % batch_size:
            raise ValueError(
                f"objective.queue_size is {self.config.queue_size}; "
                f"it must be a multiple of train.batch_size, {batch_size}, or 0"
            )

    @torch.no_grad()
    def begin_step(self, step: int, steps: int) -> None:
        """Prototypes become unit vectors again; how many batches are in the queue, below 0 before it starts."""
        super().begin_step(step, steps)
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.queued = step - round(self.config.queue_share * steps)

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy between the assignment of each of the first two views and every other view, its mean over
        pairs, summed over samples."""
        self.check(views)
        summaries = torch.cat(each(views, partial(summary, self.student["encoder"])))  # (V * B, D)
        z = F.normalize(self.student["projector"](summaries).float(), dim=1)  # (V * B, P)
        logits = list(self.prototypes(z).chunk(len(views)))  # (B, K) each
        targets = self.assignments(logits[:2])
        total = across_views(targets, logits, self.config.temperature)
        count = torch.full((), len(logits[0]), device=total.device)
        self.remember(z.chunk(len(views))[:2])  # the next step's
        metrics = {**usage(torch.cat(targets), total / count), "prediction_spread": spread_of(z[: len(logits[0])])}
        return Loss(total, count, metrics)

    @torch.no_grad()
    def assignments(self, logits: list[Tensor]) -> list[Tensor]:
        """Sinkhorn's shares (B, K) of each view, among the batch of all ranks and the view's queue once it is full."""
        config, size = self.config, len(logits[0])
        if self.queue is not None and self.queued * size * world_size() >= config.queue_size:
            # each rank brings its part of the queue
            older = self.queue[:, mine(config.queue_size // world_size(), self.queue.device)]  # (2, S / ranks, P)
            logits = [torch.cat([self.prototypes(old), new]) for old, new in zip(older, logits, strict=True)]
        return [sinkhorn(rows, config.epsilon, config.iterations)[-size:] for rows in logits]

    @torch.no_grad()
    def remember(self, embeddings: tuple[Tensor, ...]) -> None:
        """Puts (B, P) of all ranks in front of each view's queue, whose end falls off."""
        if self.queue is not None and self.queued >= 0:
            for rows, new in zip(self.queue, embeddings, strict=True):
                rows.copy_(torch.cat([gather(new), rows])[: len(rows)])

    def remembered(self) -> list[Tensor]:
        """The prototypes too, which begin_step makes unit vectors."""
        return [*super().remembered(), self.prototypes.weight.detach()]

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """How many batches are in the queue, and whether the prototypes stand."""
        config = self.config
        queued = max(-1, step - round(config.queue_share * steps))
        return (*super().of_length(step, steps), queued, step < round(config.frozen_share * steps))

    def adjust_gradients(self, step: int, steps: int) -> None:
        """At first the prototypes have none."""
        if step < round(self.config.frozen_share * steps):
            self.prototypes.zero_grad()


def build(encoder: D2vModel, config: Config) -> SwAV:
    """The objective around an encoder."""
    return SwAV(encoder, config)
