"""Which patches of an image are hidden: settings and draws.

B samples of a batch, M masks of each, T patches.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import masking
from d2v.modalities.common.checks import check_masked_views, check_unread
from d2v.types import Mask

MASK_KINDS = ("beit", "block", "inverse_block", "random")


@dataclass
class MaskConfig:
    """How images are masked. With data.views nothing is, unless `mask_views`: rectangles of a drawn share."""

    mask_kind: str = "beit"  # beit: rectangles, counts vary (1.0); block, inverse_block, random: equal counts, what is hidden is left out (2.0)
    masks: int = 1  # masks per image, of the kinds with equal counts
    mask_ratio: float = 120 / 196
    min_block: int = 16  # patches; of beit
    max_block: int | None = None
    min_aspect: float = 0.3
    mask_length: int = 3  # side of the squares; of block and inverse_block
    mask_adjust: float = 0.0  # added to the share that squares cover; of block and inverse_block
    mask_views: bool = (
        False  # each of data.views, without the local ones, has a mask of kind beit, in this share of the images (iBOT)
    )
    mask_chance: float = 0.5
    mask_range: list[float] = field(default_factory=lambda: [0.1, 0.5])  # its ratio is drawn uniformly from here


def check(config: Any, frontend: Any) -> None:
    """ValueError: settings of masks, or of masked views (a DataConfig's), that contradict one another."""
    if not 0 < config.mask_ratio <= 1 or not 0 < config.min_aspect <= 1:
        raise ValueError(
            f"data.mask_ratio {config.mask_ratio} and data.min_aspect {config.min_aspect} must lie between 0 and 1"
        )
    _check_views(config)
    if config.views and not config.mask_views:
        return
    if frontend.backbone:
        raise ValueError(
            f"backbone={frontend.backbone} mixes all patches, so that none can be hidden: name data.views, without data.mask_views"
        )
    if config.views:
        return
    _check_kind(config)
    rows, columns = frontend.grid
    wanted = round(config.mask_ratio * rows * columns)
    if not 0 < wanted < rows * columns:
        raise ValueError(
            f"data.mask_ratio {config.mask_ratio} hides {wanted} of {rows * columns} patches: some must be hidden and some visible"
        )
    if config.mask_kind != "beit":
        return
    drawn = np.mean([_hidden(g, config, frontend.grid).sum() for g in masking.generators(0, 0, range(64))])
    if drawn < 0.75 * wanted:
        raise ValueError(
            f"data.mask_ratio asks for {wanted} of {rows} x {columns} patches, but blocks of data.min_block {config.min_block} to data.max_block "
            f"{config.max_block} patches hide {drawn:.1f} on average: lower data.min_block"
        )


def _check_kind(config: MaskConfig) -> None:
    if config.mask_kind not in MASK_KINDS:
        raise ValueError(f"data.mask_kind {config.mask_kind!r} is none of {', '.join(MASK_KINDS)}")
    for name, value in (("masks", config.masks), ("mask_length", config.mask_length)):
        if value < 1:
            raise ValueError(f"data.{name} {value} must be at least 1")
    if config.mask_adjust < 0:
        raise ValueError(
            f"data.mask_adjust {config.mask_adjust} must be 0 or more: it is added to the share that squares cover"
        )
    if config.masks > 1 and config.mask_kind == "beit":
        raise ValueError(
            f"data.masks {config.masks} needs a data.mask_kind with equal counts: {', '.join(MASK_KINDS[1:])}"
        )


def _check_views(config: Any) -> None:
    """`config`: a DataConfig."""
    blocks = ("min_block", "max_block", "min_aspect")  # which masked views are made of too
    others = ("mask_kind", "masks", "mask_ratio", "mask_length", "mask_adjust")
    check_masked_views(config, (*blocks, *others))
    if not config.mask_views:
        check_unread(config, ["mask_range"], "it is of masked views: set data.mask_views=true")
        return
    check_unread(config, others, "masked views have rectangles of a share that is drawn from data.mask_range")
    if len(config.mask_range) != 2 or not 0 <= config.mask_range[0] <= config.mask_range[1] < 1:
        raise ValueError(f"data.mask_range {list(config.mask_range)} must be [low, high] with 0 <= low <= high < 1")


def draw(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> list[np.ndarray]:
    """The M masks of an image, (T,) bool each."""
    return [_hidden(generator, config, grid) for _ in range(config.masks)]


def _hidden(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> np.ndarray:
    """One mask, (T,) bool."""
    if config.mask_kind == "random":
        return masking.scattered(generator, grid[0] * grid[1], config.mask_ratio)
    if config.mask_kind != "beit":
        inverse = config.mask_kind == "inverse_block"
        return masking.block_2d(
            generator, grid, config.mask_ratio, config.mask_length, config.mask_adjust, inverse=inverse
        )
    return _rectangles(generator, config, grid, round(config.mask_ratio * grid[0] * grid[1]))


def draw_varied(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> np.ndarray:
    """iBOT's mask (arXiv 2111.07832, section 3.3): with chance `mask_chance` at most a ratio from `mask_range` is hidden, else nothing."""
    ratio = generator.uniform(*config.mask_range) if generator.random() < config.mask_chance else 0.0
    return _rectangles(generator, config, grid, int(ratio * grid[0] * grid[1]))


def _rectangles(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int], wanted: int) -> np.ndarray:
    return masking.block(
        generator, grid, wanted, min_block=config.min_block, max_block=config.max_block, min_aspect=config.min_aspect
    )


def gather(rows: list[np.ndarray], kind: str) -> Mask:
    """N = B * M masks of a view, and what the student encodes where all hide as many."""
    hidden = np.stack(rows)  # (N, T)
    keep = None if kind == "beit" else torch.from_numpy(masking.visible(hidden, int((~hidden[0]).sum())))
    return Mask(torch.from_numpy(hidden), keep)
