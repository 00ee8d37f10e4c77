"""RotNet (arXiv 1803.07728): by which of four angles was an image turned?

As published each image of the batch is there in all four rotations, made after its crop and flip. No teacher.
B samples, C channels, S pixels of a side, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.models.encoder import D2vModel
from d2v.objectives.common.masked import cross_entropy
from d2v.objectives.common.multi_view import MultiView, summary
from d2v.objectives.common.tiles import images_of, refuse_sequences, view_of
from d2v.settings import check_fields, setting
from d2v.types import Loss, View

ROTATIONS = 4


@dataclass
class Config:
    """There is nothing to set: the head is one linear layer."""

    num_views: ClassVar[int] = 1

    name: str = setting("rotnet", "Which method.")

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class RotNet(MultiView):
    """An encoder, and a linear layer to the four angles."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: samples that are no images."""
        refuse_sequences(encoder, "rotnet", "predicts rotations")
        super().__init__(encoder, teacher=False)
        self.config = config
        self.head = nn.Linear(encoder.trunk.config.dim, ROTATIONS)

    def check(self, views: list[View]) -> None:
        """ValueError: not one view, or images that are not square."""
        super().check(views)
        height, width = images_of(self.student["encoder"], views[0]).shape[-2:]
        if height != width:
            raise ValueError(
                f"rotnet turns images by 90 degrees, which needs square ones; these have {height} x {width} pixels"
            )

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a batch that batch norm cannot see as a whole; without one no sample needs the others."""
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            super().check_batch(batch_size, parts)

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy of the angles of all four rotations of each image."""
        encoder, view = self.student["encoder"], views[0]
        images, angles = rotated(images_of(encoder, view))  # (4 B, C, S, S), (4 B,)
        logits = self.head(summary(encoder, view_of(encoder, view, images)))  # (4 B, 4)
        total, accuracy = cross_entropy(logits, angles)
        return Loss(total, torch.full((), len(angles), device=total.device), {"accuracy": accuracy})


def rotated(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S) turned by 0, 90, 180 and 270 degrees, one angle after another, and the angles' numbers."""
    turned = [torch.rot90(images, angle, dims=(2, 3)) for angle in range(ROTATIONS)]
    return torch.cat(turned), torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(images))


def build(encoder: D2vModel, config: Config) -> RotNet:
    """The objective around an encoder."""
    return RotNet(encoder, config)
