"""VISReg (arXiv 2606.02572): views meet as in LeJEPA, kept apart by centre, scale and shape of the rows of each view.

No teacher, no negatives, no predictor.

B samples of this process, V views, P width of the projections, S directions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.objectives import lejepa
from d2v.objectives.common.gaussian import center_scale_shape
from d2v.settings import check_fields, setting


@dataclass
class Config:
    """Widths, directions and the one weight."""

    num_views: ClassVar[int] = 2

    name: str = setting("visreg", "Which method.")
    hidden_dim: int = setting(2048, "Width of the projector's two hidden layers.", least=1, limit=1_000_000)
    out_dim: int = setting(
        256, "Width of the projections; as published a third of a Transformer's.", least=1, limit=1_000_000
    )
    global_views: int = setting(2, "How many of the first views make the mean that all meet at.", least=2, limit=1000)
    weight: float = setting(
        0.9,
        "Of centre, scale and shape; 1 - weight is that of the distance of views; 0.6 for small data.",
        least=0,
        most=1,
    )
    num_directions: int = setting(
        4096, "Directions that the shape is seen along in each step.", least=1, limit=1_000_000
    )

    def __post_init__(self):
        """ValueError: a number below its least, or a weight above 1."""
        check_fields(self, "objective")


class VISReg(lejepa.LeJEPA):
    """LeJEPA with another measure of how rows are spread."""

    def spread(self, rows: list[Tensor], along: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Centre + scale + shape of the rows of each view, (B, P), along (P, S): the mean over views, (), and each."""
        terms = torch.stack([torch.stack(center_scale_shape(z, along)) for z in rows]).mean(dim=0)  # (3,)
        names = ("center", "scale", "shape")
        return terms.sum(), {name: value.detach() for name, value in zip(names, terms, strict=True)}


def build(encoder: D2vModel, config: Config) -> VISReg:
    """The objective around an encoder."""
    return VISReg(encoder, config)
