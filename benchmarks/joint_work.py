"""The work on which methods that compare views are timed: sizes, published settings, backbone, one batch of views.

V views, B samples, S pixels along a side.
"""

from dataclasses import dataclass
from typing import NamedTuple

import timm
import torch
from torch import Tensor

LOCAL_VIEWS = 8  # of DINO, after its two global ones


@dataclass(frozen=True)
class JointWork:
    """A method on a backbone of timm. Queue, prototypes and widths of the heads are the published ones."""

    method: str  # moco or dino
    backbone: str
    batch: int = 4
    size: int = 112
    queue: int = 65536
    prototypes: int = 65536

    @property
    def local_size(self) -> int:
        """Pixels of a local view: 96 of 224, to a multiple of 16, which is a patch of ViT-S."""
        return max(16, round(self.size * 96 / 224 / 16) * 16)

    @property
    def num_features(self) -> int:
        """Width of the backbone's output."""
        with torch.device("meta"):
            return timm.create_model(self.backbone, num_classes=0).num_features


class Recipe(NamedTuple):
    """What a method was published with, but for the rate, which is low enough for batches of noise."""

    optimizer: str
    lr: float
    weight_decay: float
    clip: float  # of the global gradient norm; 0: none
    ema_decay: float


RECIPES = {"moco": Recipe("sgd", 0.003, 1e-4, 0.0, 0.999), "dino": Recipe("adamw", 1e-4, 0.04, 3.0, 0.996)}
MOMENTUM = 0.9  # of sgd
MOCO_TEMPERATURE, DINO_TEMPERATURE = 0.2, 0.04  # the second is the teacher's


def make_views(work: JointWork) -> list[Tensor]:
    """V random views (B, 3, S, S), the same for everybody; the local ones last."""
    generator = torch.Generator().manual_seed(0)
    sizes = [work.size] * 2 + [work.local_size] * (LOCAL_VIEWS if work.method == "dino" else 0)
    return [torch.randn(work.batch, 3, size, size, generator=generator) for size in sizes]
