"""Instance discrimination (arXiv 1805.01978): tell every sample from the others by a memory bank of their embeddings.

No teacher.

B samples of this process, N of all, n of the data, K noise samples of each, P width of the embeddings.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.contrastive import cosines, describe, info_nce, nce, unit, with_gradient_now
from d2v.objectives.common.multi_view import MultiView, embedding, generator_of_step
from d2v.objectives.common.queues import MemoryBank
from d2v.settings import check_fields, setting
from d2v.training.distributed import all_mean, gather, mine, world_size
from d2v.types import Loss, View


@dataclass
class Config:
    """The published values for ImageNet; those for CIFAR-10 are loss=softmax, negatives=0, temperature=0.1."""

    num_views: ClassVar[int] = 1

    name: str = setting("instdisc", "Which method.")
    num_samples: int = setting(
        0, "Rows of the bank; 0: the usable samples of the data, each of which it remembers.", least=0
    )
    out_dim: int = setting(128, "Width of the embeddings.", least=1, limit=1_000_000)
    loss: str = setting("nce", "nce: noise-contrastive estimation; softmax: cross entropy.", among=("nce", "softmax"))
    negatives: int = setting(
        4096,
        "Drawn for each sample from the whole bank; 0, with softmax: the whole bank itself.",
        least=0,
        limit=10_000_000,
    )
    temperature: float = setting(0.07, "Of the softmax.", above=0, limit=1000)
    bank_momentum: float = setting(0.5, "Share of the old row of the bank in the new one.", least=0, below=1)

    def __post_init__(self):
        """ValueError: an unknown loss, or a number outside its bounds."""
        check_fields(self, "objective")
        if self.loss == "nce" and not self.negatives:
            raise ValueError(
                f"objective.negatives is {self.negatives}; nce needs 1 or more, softmax may take 0 (the whole bank)"
            )


class InstDisc(MultiView):
    """Student encoder and a linear head, the bank, and the constant that makes exponentials probabilities."""

    exact_views = True
    normaliser: Tensor  # () Z of equation 8, 0 until the first batch has estimated it

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: no number of samples."""
        if config.num_samples < 1:
            raise ValueError(
                f"objective.num_samples is {config.num_samples}; {config.name} remembers every sample: "
                "set it to the number of usable samples "
                "that the report of the data counts"
            )
        super().__init__(encoder, teacher=False, projector=projector([encoder.trunk.config.dim, config.out_dim]))
        self.config = config
        self.bank = MemoryBank(config.num_samples, config.out_dim, config.bank_momentum)
        self.register_buffer("normaliser", torch.tensor(0.0))

    def check(self, views: list[View]) -> None:
        """ValueError: no view, one that does not number its samples, or a number beyond the bank."""
        super().check(views)
        indices = views[0].indices
        if indices is None:
            raise ValueError(
                f"{self.config.name} remembers every sample, but these views do not number them: "
                "this data cannot be used with it"
            )
        if int(indices.max()) >= self.config.num_samples:
            raise ValueError(
                f"objective.num_samples is {self.config.num_samples}, but a sample's number is {int(indices.max())}: "
                "there are more"
            )

    def forward(self, views: list[View]) -> Loss:
        """The sum over samples of NCE's or cross entropy's loss of finding a sample's own row in the bank (equations 2
        and 7)."""
        indices = views[0].indices
        assert indices is not None
        feature = unit(embedding(self.student, views[0]))  # (B, P)
        places = self.places(indices)  # (B, 1 + K), the own row first; or all, (n,)
        contrast = partial(self.contrast, indices=indices, places=places)
        total, similarity, labels = with_gradient_now(contrast, feature)  # before the bank's update
        metrics = describe(similarity, labels, feature, self.bank.rows[indices], again=places == indices.unsqueeze(1))
        self.bank.update(gather(indices), gather(feature))
        return Loss(total, torch.full((), len(feature), device=total.device), metrics)

    def contrast(self, feature: Tensor, indices: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss summed over features (B, P), their cosines with the bank's rows at `places`, (B, M), and where their
        own are, (B,)."""
        config = self.config
        if config.negatives:
            similarity, labels = cosines(feature, self.bank.rows[places]), torch.zeros_like(indices)
        else:
            similarity, labels = cosines(feature, self.bank.rows), indices
        if config.loss == "softmax":
            return info_nce(similarity, labels, config.temperature), similarity, labels
        logits = similarity / config.temperature
        return nce(logits - self.normalised(logits).log(), config.num_samples), similarity, labels

    def places(self, indices: Tensor) -> Tensor:
        """Rows of the bank that samples (B,) are compared with, (B, 1 + K): their own, and K of all, among which it may
        be again, as published.

        Without sampling they are all rows, (n,).
        """
        if not self.config.negatives:
            return torch.arange(self.config.num_samples, device=indices.device)
        shape, device = (len(indices) * world_size(), self.config.negatives), indices.device
        generator = generator_of_step(self.step, device, self.seed)
        drawn = torch.randint(
            self.config.num_samples, shape, generator=generator, device=device
        )  # for the global batch
        return torch.cat([indices.unsqueeze(1), drawn[mine(len(indices), device)]], dim=1)

    @torch.no_grad()
    def normalised(self, logits: Tensor) -> Tensor:
        """Z: the mean exponential of the first batch's (B, 1 + K) times n, from then on a constant."""
        estimate = all_mean(logits.exp().mean()) * self.config.num_samples
        self.normaliser.copy_(torch.where((self.normaliser == 0) & estimate.isfinite(), estimate, self.normaliser))
        return self.normaliser.clone()


def build(encoder: D2vModel, config: Config) -> InstDisc:
    """The objective around an encoder."""
    return InstDisc(encoder, config)
