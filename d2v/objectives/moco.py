"""MoCo v1 and v2 (arXiv 1911.05722, 2003.04297): find the EMA teacher's key of the same sample among a queue of older
keys.

B samples of this process, N of all, K keys in the queue, P width of the keys.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.contrastive import against_queue, describe, info_nce, unit, with_gradient_now
from d2v.objectives.common.multi_view import MultiView, embedding, generator_of_step
from d2v.objectives.common.queues import Queue
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.distributed import gather, mine, world_size
from d2v.types import Loss, View


@dataclass
class Config:
    """The published values of v2; v1 is hidden_dim 0 and temperature 0.07."""

    num_views: ClassVar[int] = 2

    name: str = setting("moco", "Which method.")
    hidden_dim: int = setting(
        2048, "Width of the head's ReLU layer; 0: the head is one linear layer (v1).", least=0, limit=1_000_000
    )
    out_dim: int = setting(128, "Width of the keys.", least=1, limit=1_000_000)
    queue_size: int = setting(
        65536,
        "Keys in the queue: a multiple of train.batch_size, of twice that if symmetric.",
        least=1,
        limit=100_000_000,
    )
    temperature: float = setting(0.2, "Of the softmax.", above=0, limit=1000)
    ema_decay: float = of_teacher(0.999, "The teacher's.", least=0, most=1)
    symmetric: bool = setting(
        False, "Each view is query and key in turn; the two losses are added, and the queue receives both keys."
    )
    # else the loss can be lowered by reading the batch's statistics; published: one group a GPU, of 32 samples
    norm_groups: int = setting(
        1,
        "An encoder's batch norms see so many groups of the batch apart, and keys in groups drawn anew; "
        "1: the whole batch.",
        least=1,
        limit=100_000,
    )

    def __post_init__(self):
        """ValueError: a size or temperature that is not positive, a decay outside [0, 1]."""
        check_fields(self, "objective")


class MoCo(MultiView):
    """Student encoder and head, their EMA, and the queue of its keys."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: groups of batch norm for an encoder that has none."""
        widths = [encoder.trunk.config.dim, *([config.hidden_dim] if config.hidden_dim else []), config.out_dim]
        super().__init__(encoder, groups=config.norm_groups, projector=projector(widths, norm=False, bias=True))
        if config.norm_groups > 1 and not any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ValueError(
                f"objective.norm_groups is {config.norm_groups}; this encoder has no batch norm: it must be 1"
            )
        self.config = config
        self.queue = Queue(config.queue_size, config.out_dim)

    def check(self, views: list[View]) -> None:
        """ValueError: too few views, or padded ones that would have to change places."""
        super().check(views)
        if self.groups > 1 and any(view.padding is not None or "attention_mask" in view.inputs for view in views):
            raise ValueError(
                f"objective.norm_groups is {self.groups}, which needs samples of one length; these are padded: "
                "it must be 1"
            )

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a batch that does not divide the queue, or that batch norm or the processes cannot share."""
        super().check_batch(batch_size, parts)
        keys, size = batch_size * (1 + self.config.symmetric), self.config.queue_size
        if size % keys:
            raise ValueError(
                f"objective.queue_size is {size}; "
                f"it must be a multiple of the {keys} keys of a step (train.batch_size {batch_size})"
            )

    def forward(self, views: list[View]) -> Loss:
        """InfoNCE of each query with the key of its other view against the queue, summed over samples (equation 1)."""
        self.check(views)
        first, second = views
        pairs = [(second, first), (first, second)] if self.config.symmetric else [(first, second)]  # query, key
        device = self.queue.rows.device
        generator, total, keys = generator_of_step(self.step, device, self.seed), torch.zeros((), device=device), []
        for query_view, key_view in pairs:
            query = unit(embedding(self.student, query_view))  # (B, P)
            keys.append(self.keys(key_view, generator))
            key = keys[-1][mine(len(query), query.device)]  # (B, P)
            contrast = partial(self.contrast, key=key, generator=generator)
            loss, similarity, labels = with_gradient_now(contrast, query)  # before the push
            total = total + loss
        self.queue.push(torch.cat(keys))
        return Loss(total, torch.full((), len(query), device=total.device), describe(similarity, labels, query, key))

    @torch.no_grad()
    def keys(self, view: View, generator: torch.Generator) -> Tensor:
        """The teacher's keys of the global batch, (N, P), in its order; batch norm's groups see it in another."""
        if self.groups == 1:
            return gather(unit(embedding(self.teacher, view)))
        view, order = shuffled(view, generator)
        return gather(unit(embedding(self.teacher, view)))[order.argsort()]

    def contrast(self, query: Tensor, key: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """InfoNCE summed over queries (B, P) with their keys (B, P), and what `compare` says of them."""
        similarity, labels = self.compare(query, key, generator)
        return info_nce(similarity, labels, self.config.temperature), similarity, labels

    def compare(self, query: Tensor, key: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cosines with all candidates, (B, 1 + K), and where the positives are, (B,)."""
        return against_queue(query, key, self.queue.rows)

    def ema_decay(self, step: int, steps: int) -> float:
        """ema_decay throughout the run."""
        return self.config.ema_decay


def shuffled(view: View, generator: torch.Generator) -> tuple[View, Tensor]:
    """This process's rows of the global batch in a random order, and that order (N,): row i there is row order[i] of
    the batch."""
    num_rows = len(next(iter(view.inputs.values())))  # B
    order = torch.randperm(num_rows * world_size(), generator=generator, device=generator.device)
    local = order[mine(num_rows, order.device)]  # (B,)
    inputs = {name: gather(value)[local] for name, value in view.inputs.items()}
    return View(view.modality, inputs), order


def build(encoder: D2vModel, config: Config) -> MoCo:
    """The objective around an encoder."""
    return MoCo(encoder, config)
