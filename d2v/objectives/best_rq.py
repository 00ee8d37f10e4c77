"""BEST-RQ (arXiv 2202.01855): which of the codes that a random projection gives to tokens the hidden ones have.

Log-mel frames as published; pixels of patches likewise. There is no teacher, and nothing can collapse. The paper puts
noise in place of hidden frames before its convolutions; here the mask token stands behind those of the frontend, so
that at the borders of a span the wider ones read frames of hidden tokens, as in wav2vec 2.0.
B samples, T tokens, n hidden tokens in all, P numbers that a token is made of, C codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.codes import RandomProjection, code_use
from d2v.objectives.common.masked import cross_entropy, frontend_of, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import NORMS
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """The quantiser; the published values."""

    name: str = setting("best_rq", "Which method.")
    num_codes: int = setting(8192, "Random vectors that a token is compared with.", least=2, limit=10_000_000)
    code_dim: int = setting(16, "Width of the random projection.", least=1, limit=100_000)
    norm: str = setting(
        "instance",
        "What is projected: each number normed over its sample's tokens, without which few codes are used, or each "
        "token over its numbers.",
        among=("instance", "layer"),
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class BestRQ(Objective):
    """An encoder, a linear classifier, and a quantiser that stays as it is drawn."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that are made of nothing to quantise."""
        super().__init__(teacher=False, encoder=encoder)
        self.config = config
        self.quantizer = RandomProjection(frontend_of(encoder).content_dim, config.num_codes, config.code_dim)
        self.head = nn.Linear(encoder.trunk.config.dim, config.num_codes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """The cross entropy of the codes of hidden tokens; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, hidden = self.student["encoder"], mask.hidden
        codes = self.codes(view)[hidden]  # (n,)
        logits = self.head(encoder(view, mask, only=hidden).x)  # (n, C)
        total, accuracy = cross_entropy(logits, codes)
        use = code_use(codes, self.config.num_codes)
        return Loss(total, hidden.sum(), {"accuracy": accuracy, "hidden_share": share_of(hidden, view.padding), **use})

    @torch.no_grad()
    def codes(self, view: View) -> Tensor:
        """Numbers of all tokens, (B, T)."""
        content = self.student["encoder"].frontend(view.modality).content(**view.inputs)  # (B, T, P)
        normed = NORMS[self.config.norm](content, view.padding)
        return self.quantizer(normed.flatten(0, 1)).unflatten(0, content.shape[:2])


def build(encoder: D2vModel, config: Config) -> BestRQ:
    """The objective around an encoder."""
    return BestRQ(encoder, config)
