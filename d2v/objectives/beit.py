"""BEiT (arXiv 2106.08254): which code each hidden token has, by codes that were learnt before.

Its tokenizer is k-means on the user's own data (`d2v codes`), in place of DALL-E's; of log-mel frames that is HuBERT's
first iteration (arXiv 2106.07447). Without a file of codes they are of a random projection, as in best_rq.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from d2v.models.encoder import D2vModel
from d2v.objectives.common.code_prediction import CodePrediction
from d2v.objectives.common.codes import NearestCenter, RandomProjection, load_centers
from d2v.objectives.common.masked import frontend_of
from d2v.settings import check_fields, setting


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


class BEiT(CodePrediction):
    """Its tokenizer is a file, or as in best_rq."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that are made of nothing that could have a code, or a file of other codes."""
        content_dim, about = frontend_of(encoder).content_dim(), {}
        if config.codes:
            centers, about = load_centers(Path(config.codes))
            found = {"num_codes": len(centers), "norm": about.get("norm"), "content_dim": centers.shape[1]}
            for name, value in (("num_codes", config.num_codes), ("norm", config.norm), ("content_dim", content_dim)):
                if found[name] != value:
                    what = f"objective.{name}" if name != "content_dim" else "the numbers of a token"
                    raise ValueError(f"objective.codes is {config.codes}, of {found[name]}; {what} is {value}")
            quantizer: nn.Module = NearestCenter(centers)
        else:
            quantizer = RandomProjection(content_dim, config.num_codes, config.code_dim)
        super().__init__(encoder, config, quantizer)
        self.about = about
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def check_data(self, digest: str) -> None:
        """ValueError: the codes are of other data."""
        if self.config.codes and self.about.get("data") != digest:
            raise ValueError(
                f"objective.codes is {self.config.codes}, made of other data than data.path holds (of "
                f"{self.about.get('path')}); make a file of this data by d2v codes"
            )


def build(encoder: D2vModel, config: Config) -> BEiT:
    """The objective around an encoder."""
    return BEiT(encoder, config)
