"""PIRL (arXiv 1912.01991): an image and its shuffled tiles are both found by their sample's row in a memory bank.

The bank, noise and loss are those of instance discrimination. The first view is the image, the second the one that is
cut into tiles. Published: colours change for each tile by itself, and images of 224 beside tiles out of 255 pixels;
here they change for each view, and views have one size. No teacher.
B samples, C channels, t pixels of a side of a tile, D width, P that of the embeddings.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel
from d2v.objectives import instdisc
from d2v.objectives.common.contrastive import describe, unit, with_gradient_now
from d2v.objectives.common.multi_view import embedding, summary
from d2v.objectives.common.tiles import (
    SIDE,
    TILES,
    check_tiles,
    cut,
    draws,
    images_of,
    refuse_sequences,
    shuffled,
    view_of,
)
from d2v.settings import setting
from d2v.training.distributed import gather
from d2v.types import Loss, View


@dataclass
class Config(instdisc.Config):
    """Instance discrimination's settings, and the size of a tile."""

    num_views: ClassVar[int] = 2

    name: str = setting("pirl", "Which method.")
    negatives: int = setting(
        32000,
        "Drawn for each sample from the whole bank; 0, with softmax: the whole bank itself.",
        least=0,
        limit=10_000_000,
    )
    tile_size: int = setting(
        64, "Pixels of a side of a tile: less than a third of the image's, for the gaps.", least=1, limit=10_000
    )


class PIRL(instdisc.InstDisc):
    """Instance discrimination's encoder, head and bank, a layer for each tile and one for all nine."""

    config: Config

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: samples that are no images, or no number of them."""
        refuse_sequences(encoder, "pirl", "shuffles tiles")
        super().__init__(encoder, config)
        self.tile_head = nn.Linear(encoder.trunk.config.dim, config.out_dim)
        self.tiles_head = nn.Linear(TILES * config.out_dim, config.out_dim)
        self.bank.rows.copy_(unit(self.bank.rows))  # of unit length from the start, unlike instance discrimination's

    def check(self, views: list[View]) -> None:
        """ValueError: views or numbers of samples as in instance discrimination, or images too small for the tiles."""
        super().check(views)
        check_tiles(self.student["encoder"], views[1], self.config.tile_size, least=1)

    def forward(self, views: list[View]) -> Loss:
        """The mean of what the image and the tiles lose (the paper's lambda is 1/2), summed over samples.

        Both read the bank as it was; the image alone moves it, and estimates Z.
        """
        indices = views[0].indices
        assert indices is not None
        whole = unit(embedding(self.student, views[0]))  # (B, P)
        tiles = unit(self.of_tiles(views[1]))  # (B, P)
        places = self.places(indices)
        contrast = partial(self.contrast, indices=indices, places=places)
        of_whole, similarity, labels = with_gradient_now(contrast, whole)
        of_tiles, *_ = with_gradient_now(contrast, tiles)
        metrics = describe(similarity, labels, whole, self.bank.rows[indices], again=places == indices.unsqueeze(1))
        metrics["tiles_cosine"] = (whole * tiles).sum(dim=1).mean().detach()
        self.bank.update(gather(indices), gather(whole))
        return Loss((of_whole + of_tiles) / 2, torch.full((), len(whole), device=whole.device), metrics)

    def of_tiles(self, view: View) -> Tensor:
        """The embedding (B, P) of a view's nine tiles in a random order."""
        encoder, size = self.student["encoder"], self.config.tile_size
        images = images_of(encoder, view)
        room = min(images.shape[-2:]) // SIDE - size
        offsets, order = draws(self.seed, self.step, len(images), room, lambda g: torch.randperm(TILES, generator=g))
        offsets, order = (x.to(images.device, non_blocking=True) for x in (offsets, order))
        tiles = shuffled(cut(images, offsets, size), order)  # (B, 9, C, t, t)
        of_tile = self.tile_head(summary(encoder, view_of(encoder, view, tiles.flatten(0, 1))))  # (9 B, P)
        return self.tiles_head(of_tile.view(len(images), -1))


def build(encoder: D2vModel, config: Config) -> PIRL:
    """The objective around an encoder."""
    return PIRL(encoder, config)
