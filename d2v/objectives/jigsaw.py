"""Jigsaw puzzles (arXiv 1603.09246): in which of n orders do the nine tiles of an image lie?

The network and the set of orders are those of VISSL: the encoder reads each tile by itself, a layer of its own and
batch norm make it `hidden_dim` numbers, and a linear layer reads all nine. As in the paper each tile is normalised by
its own mean and deviation, which VISSL leaves out. No teacher.
B samples, C channels, S pixels of a side of an image, t of a tile, n orders, D width, H width of a tile.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.batch_norm import GroupedBatchNorm
from d2v.models.encoder import D2vModel
from d2v.objectives.common.masked import cross_entropy
from d2v.objectives.common.multi_view import MultiView, summary
from d2v.objectives.common.tiles import (
    SIDE,
    TILES,
    check_tiles,
    cut,
    draws,
    far_apart,
    images_of,
    refuse_sequences,
    shuffled,
    view_of,
)
from d2v.settings import check_fields, setting
from d2v.types import Loss, View

LEAST = 2


@dataclass
class Config:
    """VISSL's values for a ResNet-50; its images have 255 pixels."""

    num_views: ClassVar[int] = 1

    name: str = setting("jigsaw", "Which method.")
    num_permutations: int = setting(2000, "Orders of the tiles that are told apart.", least=2, most=10_000)
    tile_size: int = setting(
        64,
        "Pixels of a side of a tile: less than a third of the image's, for the gaps.",
        least=LEAST,  # a single pixel is its own mean, and nothing after the norm
        limit=10_000,
    )
    hidden_dim: int = setting(1000, "Width of what is made of a tile.", least=1, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class Jigsaw(MultiView):
    """An encoder of tiles, a layer for each, one for all nine, and the orders (n, 9)."""

    exact_views = True
    orders: Tensor

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: samples that are no images."""
        refuse_sequences(encoder, "jigsaw", "predicts the order of tiles")
        super().__init__(encoder, teacher=False)
        self.config, width = config, config.hidden_dim
        self.tile_head = nn.Sequential(
            nn.Linear(encoder.trunk.config.dim, width), GroupedBatchNorm(width), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(TILES * width, config.num_permutations)
        self.register_buffer("orders", torch.tensor(far_apart(TILES, config.num_permutations)))

    def check(self, views: list[View]) -> None:
        """ValueError: not one view, or images too small for the tiles."""
        super().check(views)
        check_tiles(self.student["encoder"], views[0], self.config.tile_size, least=LEAST)

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy of the numbers of the orders in which each image's tiles lie."""
        encoder, view = self.student["encoder"], views[0]
        tiles, number = self.puzzles(images_of(encoder, view))  # (B, 9, C, t, t), (B,)
        of_tiles = self.tile_head(summary(encoder, view_of(encoder, view, tiles.flatten(0, 1))))  # (9 B, H)
        total, accuracy = cross_entropy(self.head(of_tiles.view(len(number), -1)), number)
        return Loss(total, torch.full((), len(number), device=total.device), {"accuracy": accuracy})

    def puzzles(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tiles (B, 9, C, t, t) of images (B, C, S, S) in one of the orders, and its number (B,)."""
        size, orders = self.config.tile_size, len(self.orders)
        room = min(images.shape[-2:]) // SIDE - size
        offsets, number = draws(
            self.seed, self.step, len(images), room, lambda g: torch.randint(orders, (), generator=g)
        )
        offsets, number = offsets.to(images.device, non_blocking=True), number.to(images.device, non_blocking=True)
        tiles = cut(images, offsets, size)
        tiles = F.instance_norm(tiles.flatten(0, 1)).view(tiles.shape)  # else their edges and light tell the order
        return shuffled(tiles, self.orders[number]), number


def build(encoder: D2vModel, config: Config) -> Jigsaw:
    """The objective around an encoder."""
    return Jigsaw(encoder, config)
