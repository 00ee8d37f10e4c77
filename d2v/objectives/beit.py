"""BEiT (arXiv 2106.08254): which code each hidden token has, by codes that were learnt before.

Its tokenizer is k-means on the user's own data (`d2v codes`), in place of DALL-E's; of log-mel frames that is HuBERT's
first iteration (arXiv 2106.07447). Without a file of codes they are of a random projection, as in best_rq.
B samples, T tokens, n hidden tokens in all, P numbers that a token is made of, C codes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.codes import NearestCenter, RandomProjection, code_use, load_centers
from d2v.objectives.common.masked import cross_entropy, frontend_of, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import NORMS
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """The tokenizer; the published number of codes."""

    name: str = setting("beit", "Which method.")
    codes: str = setting(
        "", "The file that d2v codes makes of the data that is trained on; empty: a random projection.", place=True
    )
    num_codes: int = setting(8192, "Codes of the file, or of the random projection.", least=2, limit=10_000_000)
    code_dim: int = setting(16, "Width of the random projection.", least=1, limit=100_000, only={"codes": False})
    norm: str = setting(
        "instance",
        "What has a code: each number normed over its sample's tokens, or each token over its numbers.",
        among=("instance", "layer"),
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class BEiT(Objective):
    """An encoder, a linear classifier, and a tokenizer that stays as it is."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that are made of nothing that could have a code, or a file of other codes."""
        super().__init__(teacher=False, encoder=encoder)
        self.config, self.about = config, {}
        content_dim = frontend_of(encoder).content_dim
        if config.codes:
            centers, self.about = load_centers(Path(config.codes))
            found = {"num_codes": len(centers), "norm": self.about.get("norm"), "content_dim": centers.shape[1]}
            for name, value in (("num_codes", config.num_codes), ("norm", config.norm), ("content_dim", content_dim)):
                if found[name] != value:
                    what = f"objective.{name}" if name != "content_dim" else "the numbers of a token"
                    raise ValueError(f"objective.codes is {config.codes}, of {found[name]}; {what} is {value}")
            self.quantizer: nn.Module = NearestCenter(centers)
        else:
            self.quantizer = RandomProjection(content_dim, config.num_codes, config.code_dim)
        self.head = nn.Linear(encoder.trunk.config.dim, config.num_codes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def check_data(self, digest: str) -> None:
        """ValueError: the codes are of other data."""
        if self.config.codes and self.about.get("data") != digest:
            raise ValueError(
                f"objective.codes is {self.config.codes}, made of other data than data.path holds (of "
                f"{self.about.get('path')}); make a file of this data by d2v codes"
            )

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


def build(encoder: D2vModel, config: Config) -> BEiT:
    """The objective around an encoder."""
    return BEiT(encoder, config)
