"""Codebooks that follow what is assigned to them: running sums of targets, without gradient.

L codebooks, C codes of each, D width, n targets of this process.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.objectives.common.codes import nearest
from d2v.objectives.common.regression import NORMS
from d2v.settings import check_fields, setting
from d2v.training.distributed import all_sum


@dataclass
class CodebookSettings:
    """Targets and codebooks of DinoSR and SpidR; the published values of speech."""

    name: str = setting("", "Which method.")
    top_k: int = setting(8, "Teacher layers that have a codebook, the last ones.", least=1, limit=1000)
    layers: str = setting(
        "ffn", "What a layer gives: its FFN output before the residual, or the block's end.", among=("ffn", "block")
    )
    layer_norms: list[str] = setting(["instance"], "Norms of each layer, in this order.", among=tuple(NORMS))
    num_codes: int = setting(256, "Codes of each layer.", least=2, limit=1_000_000)
    code_decay: float = setting(0.9, "What a step leaves of a code's sum and count.", least=0, below=1)
    shared: list[str] = setting(
        [], "Parts of the encoder that the teacher copies instead of averaging (prefixes of names)."
    )
    feed_tokens: bool = setting(
        False, "The teacher is fed the student's unmasked local features.", only={"shared": True}
    )
    frozen: list[str] = setting([], "Parts of the encoder that are trained no more after freeze_share (prefixes).")
    freeze_share: float = setting(0.5, "When they and the teacher stop: a share of train.steps.", above=0, most=1)

    def __post_init__(self):
        """ValueError: a choice that does not exist, or a number outside its bounds."""
        check_fields(self, "objective")


class Codebooks(nn.Module):
    """One codebook for each of L layers (DinoSR, arXiv 2305.10005, section 3.2): a code is a sum of targets over a
    count, both forgotten by `decay`.

    `gather` notes what micro-batches assign, `update` moves the codes once a step: how a batch is cut changes nothing.
    """

    sums: Tensor  # (L, C, D)
    counts: Tensor  # (L, C)
    new_sums: Tensor
    new_counts: Tensor

    def __init__(self, num_books: int, num_codes: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        start = F.layer_norm(torch.randn(num_books, num_codes, dim), (dim,))  # as large as what is normed
        self.register_buffer("sums", start)
        self.register_buffer("counts", torch.ones(num_books, num_codes))
        for name, like in (("new_sums", self.sums), ("new_counts", self.counts)):
            self.register_buffer(name, torch.zeros_like(like), persistent=False)

    def begin_step(self) -> None:
        """Nothing is noted yet."""
        self.new_sums.zero_()
        self.new_counts.zero_()

    @torch.no_grad()
    def nearest(self, book: int, targets: Tensor) -> Tensor:
        """The code of one book that is nearest to each target: (n, D) -> (n,)."""
        codes = self.sums[book] / self.counts[book, :, None]  # (C, D)
        return nearest(targets, codes)

    @torch.no_grad()
    def gather(self, book: int, targets: Tensor, chosen: Tensor) -> None:
        """Notes that targets (n, D) have the codes `chosen` (n,) of one book."""
        self.new_sums[book].index_add_(0, chosen, targets.float())
        self.new_counts[book].index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Codes that some process has given to a target move towards the sum of theirs; the others stay."""
        sums, counts = all_sum(self.new_sums), all_sum(self.new_counts)
        decay = torch.where(counts > 0, self.decay, 1.0)  # (L, C)
        self.counts.mul_(decay).add_((1 - decay) * counts)
        self.sums.mul_(decay[..., None]).add_((1 - decay[..., None]) * sums)
