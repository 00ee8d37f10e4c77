"""Which patches of an image are hidden: settings and draws.

B samples of a batch, M masks of each, T patches.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.modalities.common.checks import HIDDEN, OF_MASKED_VIEWS, check_ranges
from d2v.modalities.image.frontend import FrontendConfig
from d2v.settings import setting
from d2v.types import Mask

OF_ONE_VIEW = "data.views hides nothing, or with data.mask_views=true rectangles of a share drawn from data.mask_range"
IN_PLACE = ("beit", "center")  # the student reads every patch, hidden ones as the mask token
MASK_KINDS = ("beit", "center", "block", "inverse_block", "random", "rectangle", "multi_block")
OF_RATIO = MASK_KINDS[:-1]  # those that hide a share of the patches
OF_BLOCKS = {"views": False, "mask_kind": "multi_block"}


@dataclass
class MaskConfig:
    """How images are masked; of data.views only those of `mask_views` are, by rectangles of a share that is drawn."""

    mask_kind: str = setting(
        "beit",
        "beit: rectangles, and the number of hidden patches varies (data2vec 1.0); center: the square in the middle; "
        "block, inverse_block, random: as many in every image, and the student does not read them (2.0); rectangle: "
        "all but one, which may wrap around (CAPI); multi_block: `masks` blocks, which the student predicts from one "
        "other (I-JEPA).",
        among=MASK_KINDS,
        only={"views": False},
        why=OF_ONE_VIEW,
    )
    masks: int = setting(
        1,
        "Masks of each image; more than one with the kinds that hide as many.",
        least=1,
        limit=1000,
        only={"views": False},
        why=OF_ONE_VIEW,
    )
    mask_ratio: float = setting(
        120 / 196,
        "Share of an image's patches that is hidden.",
        above=0,
        most=1,
        only={"views": False, "mask_kind": OF_RATIO},
        why=OF_ONE_VIEW,
    )
    min_block: int = setting(
        16,
        "Of beit: fewest patches of a rectangle.",
        least=1,
        limit=1_000_000,
        only=[{"views": False, "mask_kind": "beit"}, {"mask_views": True}],
        why=HIDDEN,
    )
    max_block: int | None = setting(
        None,
        "Of beit: most patches of a rectangle; null: all of the image.",
        least=1,
        limit=1_000_000,
        only=[{"views": False, "mask_kind": "beit"}, {"mask_views": True}],
        why=HIDDEN,
    )
    min_aspect: float = setting(
        0.3,
        "Of beit and rectangle: least ratio of a rectangle's sides.",
        above=0,
        most=1,
        only=[{"views": False, "mask_kind": ("beit", "rectangle")}, {"mask_views": True}],
        why=HIDDEN,
    )
    mask_length: int = setting(
        3,
        "Of block and inverse_block: side of the squares, in patches.",
        least=1,
        limit=10_000,
        only={"views": False, "mask_kind": ("block", "inverse_block")},
        why=OF_ONE_VIEW,
    )
    mask_adjust: float = setting(
        0.0,
        "Of block and inverse_block: added to the share that squares cover before they overlap.",
        least=0,
        most=1,
        only={"views": False, "mask_kind": ("block", "inverse_block")},
        why=OF_ONE_VIEW,
    )
    target_scale: list[float] = setting(
        [0.15, 0.2],
        "Of multi_block: the share of patches in a target is drawn from here, once a batch.",
        above=0,
        most=1,
        count=2,
        only=OF_BLOCKS,
        why=OF_ONE_VIEW,
    )
    target_aspect: list[float] = setting(
        [0.75, 1.5],
        "Of multi_block: the ratio of a target's sides is drawn from here, once a batch.",
        above=0,
        limit=1000,
        count=2,
        only=OF_BLOCKS,
        why=OF_ONE_VIEW,
    )
    context_scale: list[float] = setting(
        [0.85, 1.0],
        "Of multi_block: the share of patches in the square that is read, targets not yet taken out.",
        above=0,
        most=1,
        count=2,
        only=OF_BLOCKS,
        why=OF_ONE_VIEW,
    )
    min_context: int = setting(
        10,
        "Of multi_block: fewest patches that are read; targets stay in the square where they would leave fewer.",
        least=1,
        limit=1_000_000,
        only=OF_BLOCKS,
        why=OF_ONE_VIEW,
    )
    mask_views: bool = setting(
        False,
        "Each of data.views, without the local ones, is masked by rectangles in some images (iBOT); "
        "false: views hide nothing.",
        only={"views": True},
    )
    mask_chance: float = setting(
        0.5,
        "Share of a view's images that mask_views masks.",
        above=0,
        most=1,
        only={"mask_views": True},
        why=OF_MASKED_VIEWS,
    )
    mask_range: list[float] = setting(
        [0.1, 0.5],
        "Of mask_views: the share of patches that is hidden is drawn from here.",
        least=0,
        below=1,
        count=2,
        only={"mask_views": True},
        why=OF_MASKED_VIEWS,
    )


def check(config: Any, frontend: FrontendConfig) -> None:
    """ValueError: settings of masks, or of masked views (a DataConfig's), that contradict one another."""
    check_ranges(config, "mask_range", "target_scale", "target_aspect", "context_scale")
    if config.views and not config.mask_views:
        return
    if frontend.backbone:
        raise ValueError(
            f"backbone={frontend.backbone} mixes all patches, so that none can be hidden: "
            "name data.views, without data.mask_views"
        )
    if not config.views:
        _check_counts(config, frontend.grid)


def _check_counts(config: MaskConfig, grid: tuple[int, int]) -> None:
    """ValueError: masks that would hide nothing, everything, or much less than mask_ratio asks for."""
    rows, columns = grid
    if config.masks > 1 and config.mask_kind in IN_PLACE:
        kinds = [kind for kind in MASK_KINDS if kind not in IN_PLACE]
        raise ValueError(f"data.masks {config.masks} needs a data.mask_kind with equal counts: {', '.join(kinds)}")
    if config.mask_kind == "multi_block":
        least = masking.block_sides(config.context_scale[0], 1.0, grid)
        if config.min_context > least[0] * least[1]:
            raise ValueError(
                f"data.min_context is {config.min_context}, but a square of {config.context_scale[0]} of the "
                f"{rows} x {columns} patches (data.context_scale) has {least[0] * least[1]}: lower it"
            )
        return
    wanted = round(config.mask_ratio * rows * columns)
    if config.mask_kind == "center":
        wanted = int(middle(grid, config.mask_ratio).sum())
    if not 0 < wanted < rows * columns:
        raise ValueError(
            f"data.mask_ratio {config.mask_ratio} hides {wanted} of {rows * columns} patches: "
            "some must be hidden and some visible"
        )
    if config.mask_kind != "beit":
        return
    counts = [_hidden(generator, config, grid).sum() for generator in sampling.generators(0, 0, range(64))]
    if np.mean(counts) < 0.75 * wanted:
        raise ValueError(
            f"data.mask_ratio asks for {wanted} of {rows} x {columns} patches, but blocks of data.min_block "
            f"{config.min_block} to data.max_block {config.max_block} patches hide {np.mean(counts):.1f} on average: "
            "lower data.min_block"
        )


def block(
    generator: np.random.Generator,
    grid: tuple[int, int],
    num_hidden: int,
    *,
    min_block: int = 16,
    max_block: int | None = None,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """BEiT's block-wise mask over (rows, columns): rectangles, until `num_hidden` are hidden or ten tries add none.

    The count varies a little below `num_hidden` (120 of 196 gives 119.55 on average, as the reference's code does).
    Returns (rows * columns,) bool. Source: BEiT (arXiv 2106.08254), algorithm 1; data2vec 1.0 uses 120 of 14 x 14.
    """
    rows, columns = grid
    max_block = rows * columns if max_block is None else max_block
    log_aspect = math.log(min_aspect)
    hidden = np.zeros(grid, dtype=bool)
    count = 0
    while count < num_hidden:
        limit = min(num_hidden - count, max_block)
        for _ in range(10):
            area = generator.uniform(*sorted((min_block, limit)))
            aspect = math.exp(generator.uniform(log_aspect, -log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = generator.integers(0, rows - height + 1), generator.integers(0, columns - width + 1)
            cells = hidden[top : top + height, left : left + width]
            new = height * width - int(cells.sum())
            if 0 < new <= limit:
                cells[:] = True
                count += new
                break
        else:
            break
    return hidden.reshape(-1)


def middle(grid: tuple[int, int], ratio: float) -> np.ndarray:
    """The square in the middle whose share of (rows, columns) is nearest to `ratio`, (rows * columns,) bool."""
    side = round(math.sqrt(ratio * grid[0] * grid[1]))
    hidden = np.zeros(grid, dtype=bool)
    top, left = ((size - side) // 2 for size in grid)
    hidden[max(0, top) : top + side, max(0, left) : left + side] = True
    return hidden.reshape(-1)


def draw(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> list[np.ndarray]:
    """The M masks of an image, (T,) bool each."""
    return [_hidden(generator, config, grid) for _ in range(config.masks)]


def _hidden(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> np.ndarray:
    """One mask, (T,) bool."""
    if config.mask_kind == "random":
        return masking.scattered(generator, grid[0] * grid[1], config.mask_ratio)
    if config.mask_kind == "center":
        return middle(grid, config.mask_ratio)
    if config.mask_kind == "rectangle":
        num_shown = masking.num_visible(grid[0] * grid[1], config.mask_ratio)
        return masking.rectangle(generator, grid, num_shown, config.min_aspect)
    if config.mask_kind != "beit":
        inverse = config.mask_kind == "inverse_block"
        return masking.block_2d(
            generator, grid, config.mask_ratio, config.mask_length, config.mask_adjust, inverse=inverse
        )
    return _rectangles(generator, config, grid, round(config.mask_ratio * grid[0] * grid[1]))


def multi_block(seed: int, step: int, batch: int, rows: range, config: MaskConfig, grid: tuple[int, int]) -> Mask:
    """I-JEPA's masks of some rows of a batch: targets hidden (B * M, T), the context of each row kept (B, K).

    Every process draws those of all rows, of which the smallest context says how large the others are. One number
    gives a target's size and its ratio of sides, as in the paper's code.
    """
    common, *own = sampling.generators(seed, step, range(batch, 2 * batch + 1))  # those of rows draw their images
    drawn = common.random()
    (low, high), (flat, tall) = config.target_scale, config.target_aspect
    target = masking.block_sides(low + drawn * (high - low), flat + drawn * (tall - flat), grid)
    sides = masking.Blocks(target, masking.block_sides(common.uniform(*config.context_scale), 1.0, grid))
    made = [masking.blocks(generator, grid, sides, config.masks, config.min_context) for generator in own]
    contexts = masking.thinned(common, [context for _, context in made])
    hidden = np.concatenate([made[row][0] for row in rows])  # (B * M, T)
    shown = np.stack([contexts[row] for row in rows])  # (B, T)
    keep = masking.visible(~shown, int(shown[0].sum()))
    return Mask(torch.from_numpy(hidden), torch.from_numpy(keep))


def draw_varied(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int]) -> np.ndarray:
    """iBOT's mask (arXiv 2111.07832, section 3.3), (T,) bool.

    With chance `mask_chance` at most a ratio from `mask_range` is hidden, else nothing.
    """
    ratio = generator.uniform(*config.mask_range) if generator.random() < config.mask_chance else 0.0
    return _rectangles(generator, config, grid, int(ratio * grid[0] * grid[1]))


def _rectangles(generator: np.random.Generator, config: MaskConfig, grid: tuple[int, int], wanted: int) -> np.ndarray:
    return block(
        generator, grid, wanted, min_block=config.min_block, max_block=config.max_block, min_aspect=config.min_aspect
    )


def gather(rows: list[np.ndarray], kind: str) -> Mask:
    """N = B * M masks of a view, and what the student encodes where all hide as many."""
    hidden = np.stack(rows)  # (N, T)
    keep = None if kind in IN_PLACE else torch.from_numpy(masking.visible(hidden, int((~hidden[0]).sum())))
    return Mask(torch.from_numpy(hidden), keep)
