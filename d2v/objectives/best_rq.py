"""BEST-RQ (arXiv 2202.01855): which of the codes that a random projection gives to tokens the hidden ones have.

Log-mel frames as published; pixels of patches likewise. There is no teacher, and nothing can collapse. The paper puts
noise in place of hidden frames before its convolutions; here the mask token stands behind those of the frontend, so
that at the borders of a span the wider ones read frames of hidden tokens, as in wav2vec 2.0.
"""

from dataclasses import dataclass

from torch import nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.code_prediction import CodePrediction
from d2v.objectives.common.codes import RandomProjection
from d2v.objectives.common.masked import frontend_of
from d2v.settings import check_fields, setting


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


class BestRQ(CodePrediction):
    """Its quantiser stays as it is drawn."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that are made of nothing to quantise."""
        content_dim = frontend_of(encoder).content_dim()
        super().__init__(encoder, config, RandomProjection(content_dim, config.num_codes, config.code_dim))
        nn.init.normal_(self.head.weight, std=0.02)


def build(encoder: D2vModel, config: Config) -> BestRQ:
    """The objective around an encoder."""
    return BestRQ(encoder, config)
