"""What pretext tasks do to whole images: tiles out of a grid of three by three cells, with gaps between them.

Any is a D2vModel out of a ModuleDict. B samples, C channels, S pixels of a side of an image, t of a tile.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.objectives.common.masked import row_generators
from d2v.types import View

SIDE = 3  # cells of a row and of a column, as published
TILES = SIDE * SIDE


def refuse_sequences(encoder: D2vModel, method: str, does: str) -> None:
    """ValueError: tokens that do not lie in a grid, so that there is no image of which the method `does` something."""
    if any(frontend.grid is None for frontend in encoder.frontends.values()):
        raise ValueError(f"{method} {does} of images, and samples here are sequences: objective.name must be another")


def images_of(encoder: Any, view: View) -> Tensor:
    """The pixels of a view, (B, C, S, S)."""
    return view.inputs[encoder.frontend(view.modality).main_input]


def view_of(encoder: Any, view: View, images: Tensor) -> View:
    """Other images (N, C, t, t) as a view of the same modality."""
    return View(view.modality, {encoder.frontend(view.modality).main_input: images})


def check_tiles(encoder: Any, view: View, size: int, *, least: int) -> None:
    """ValueError: tiles that leave no gap between them, or that the encoder cannot read.

    `least`: pixels of a side of the smallest that make sense.
    """
    images = images_of(encoder, view)
    sides = images.shape[-2:]
    cell = min(sides) // SIDE
    if size >= cell:
        impossible = f"impossible, as these need {SIDE * (least + 1)} pixels at least"
        cure = f"at most {cell - 1}" if cell > least else impossible
        raise ValueError(
            f"objective.tile_size is {size}; tiles must be smaller than a third of an image, with gaps between them: "
            f"of images of {sides[0]} x {sides[1]} pixels that is {cure}"
        )
    shadow = copy.deepcopy(encoder.frontend(view.modality)).eval()  # norms need no batch then, nor change
    shadow.training = True  # only then it reads other sizes
    try:
        with torch.no_grad():
            shadow.embed(images[:1, :, :size, :size])
    except (ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"objective.tile_size is {size}, which the encoder cannot read: {said}") from None


def draws(
    seed: int, step: int, samples: int, room: int, order: Callable[[torch.Generator], Tensor]
) -> tuple[Tensor, Tensor]:
    """Of each sample where its tiles lie in their cells, 0 to `room` along both axes, (B, 9, 2), and its `order`.

    Functions of seed, step and the row's place in the global batch, drawn on the CPU: the same on any device.
    """
    offsets, orders = [], []
    for generator in row_generators(seed, step, samples, torch.device("cpu")):
        offsets.append(torch.randint(room + 1, (TILES, 2), generator=generator))
        orders.append(order(generator))
    return torch.stack(offsets), torch.stack(orders)


def cut(images: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Tiles of images (B, C, S, S), column by column, each at its offset (B, 9, 2) in its cell: (B, 9, C, t, t)."""
    height, width = (side // SIDE for side in images.shape[-2:])
    number, along = torch.arange(TILES, device=images.device), torch.arange(size, device=images.device)
    y = (number % SIDE * height + offsets[..., 0])[..., None] + along  # (B, 9, t)
    x = (number // SIDE * width + offsets[..., 1])[..., None] + along
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    tiles = images[sample, :, y[..., :, None], x[..., None, :]]  # (B, 9, t, t, C)
    return tiles.movedim(-1, 2)


def shuffled(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles (B, 9, ...) in an order (B, 9): place i holds tile order[i]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


@lru_cache(maxsize=2)
def far_apart(tiles: int, count: int) -> list[list[int]]:
    """`count` orders of `tiles` numbers, each in turn the one whose mean Hamming distance from those before is largest
    (arXiv 1603.09246, algorithm 1); among equals the one whose nearest is farthest, then the first by the alphabet.

    The first is the identity. Published: it is drawn, which changes only how tiles are called, and any of the equals.
    ValueError: there are not so many.
    """
    every = np.array(list(permutations(range(tiles))), dtype=np.uint8).T.copy()  # (tiles, tiles!), fast to compare
    if count > every.shape[1]:
        raise ValueError(f"{tiles} tiles have {every.shape[1]} orders, not {count}")
    shared = np.zeros(every.shape[1], dtype=np.int64)  # places that agree with those chosen, over all of these
    nearest = np.zeros(every.shape[1], dtype=np.uint8)  # and with the one that has most
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int((shared * (tiles + 1) + nearest).argmin()))
        agree = (every == every[:, chosen[-1:]]).sum(axis=0, dtype=np.uint8)
        shared += agree
        np.maximum(nearest, agree, out=nearest)
        shared[chosen[-1]] = np.iinfo(np.int64).max // (2 * tiles + 2)  # never again
    return every[:, chosen].T.tolist()
