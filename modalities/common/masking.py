"""Masking strategies: pure functions of a generator and a shape that return which tokens are hidden.

B rows, M masks of a row, T tokens, K visible tokens. Each row has its own generator, so that a row's mask does not
depend on which process draws it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Generator = np.random.Generator


def random(generator: Generator, num_tokens: int, ratio: float) -> np.ndarray:
    """Exactly round(ratio * T) tokens chosen uniformly. Returns (T,) bool."""
    hidden = np.zeros(num_tokens, dtype=bool)
    hidden[generator.choice(num_tokens, round(ratio * num_tokens), replace=False)] = True
    return hidden


def span(
    generator: Generator, num_tokens: int, prob: float, length: int, *, min_spans: int = 1, last_frame: bool = False
) -> np.ndarray:
    """Spans of `length` tokens at distinct random starts; they may overlap, so less than `prob` is hidden.

    The number of spans is prob * T / length, rounded up or down at random. Starts lie in [0, T - length), as in wav2vec
    2.0's reference, which therefore never hides the last frame; `last_frame=True` draws starts over all T and cuts the
    spans there (the text variant). At least one token stays visible; a row of one token hides nothing.
    Returns (T,) bool.
    """
    hidden = np.zeros(num_tokens, dtype=bool)
    if num_tokens < 2:
        return hidden
    num_spans = max(min_spans, int(prob * num_tokens / length + generator.random()))
    if last_frame:
        num_starts = num_tokens
    else:
        if num_tokens - length <= num_spans:
            length = max(1, num_tokens - num_spans - 1)
        num_starts = num_tokens - length
    starts = generator.choice(num_starts, min(num_spans, num_starts), replace=False)
    for start in starts:
        hidden[start : start + length] = True
    if hidden.all():  # nothing would be left to predict from
        hidden[generator.integers(num_tokens)] = False
    return hidden


def block_1d(generator: Generator, num_tokens: int, ratio: float, length: int, adjust: float) -> np.ndarray:
    """data2vec 2.0's mask of a sequence: runs around random centres, then single tokens; int(ratio * T) are hidden.

    Runs have `length` tokens. `adjust` is added to the share that they would hide if they did not overlap; it does not
    change the count. At least one token is hidden and one visible. Returns (T,) bool.
    Source: arXiv 2212.07525 section 3 and its code.
    """
    return _painted(generator, (num_tokens,), ratio, length, adjust)


def block_2d(
    generator: Generator, grid: tuple[int, int], ratio: float, length: int, adjust: float, *, inverse: bool
) -> np.ndarray:
    """data2vec 2.0's mask of an image, (rows, columns): squares around random centres, then single patches.

    Squares have sides of `length`; `adjust` as in `block_1d`. `inverse`: what is drawn stays visible, and the rest is
    hidden. Returns (rows * columns,) bool, int(ratio * T) of them True; inverse: all but int((1 - ratio) * T).
    """
    if inverse:
        return ~_painted(generator, grid, 1 - ratio, length, adjust)
    return _painted(generator, grid, ratio, length, adjust)


def _painted(generator: Generator, grid: tuple[int, ...], share: float, length: int, adjust: float) -> np.ndarray:
    """Exactly int(share * cells) cells, (cells,) bool, at least one and not all.

    Blocks around centres that are drawn with replacement; then single cells are taken away or added.
    """
    painted = np.zeros(grid, dtype=bool)
    centres = generator.integers(0, painted.size, int(painted.size * ((share + adjust) / length ** len(grid))))
    offsets = np.arange(length) - length // 2
    axes = []  # of each block the places along each side, cut off at the border, (blocks, length)
    for centre, size in zip(np.unravel_index(centres, grid), grid, strict=True):
        axes.append(np.clip(centre[:, None] + offsets, 0, size - 1))
    if len(grid) == 1:
        painted[axes[0]] = True
    else:
        painted[axes[0][:, :, None], axes[1][:, None, :]] = True
    painted = painted.reshape(-1)
    surplus = int(painted.sum()) - min(max(1, int(painted.size * share)), painted.size - 1)
    too_many = surplus > 0
    changed = generator.choice(np.flatnonzero(painted == too_many), abs(surplus), replace=False)
    painted[changed] = not too_many
    return painted


def rectangle(generator: Generator, grid: tuple[int, int], num_shown: int, min_aspect: float) -> np.ndarray:
    """CAPI's mask: one rectangle of `num_shown` visible patches, moved around the torus that the image's sides make.

    Its ratio of sides is drawn from [min_aspect, 1 / min_aspect]; its last row is cut to the count. Returns
    (rows * columns,) bool, True where hidden. Source: arXiv 2502.08769, section 3.
    """
    rows, columns = grid
    aspect = math.exp(generator.uniform(math.log(min_aspect), -math.log(min_aspect)))
    width = min(max(round(math.sqrt(num_shown / aspect)), -(-num_shown // rows)), columns)
    cells = np.arange(num_shown)
    top, left = generator.integers(rows), generator.integers(columns)
    hidden = np.ones(grid, dtype=bool)
    hidden[(top + cells // width) % rows, (left + cells % width) % columns] = False
    return hidden.reshape(-1)


class Blocks(NamedTuple):
    """Sides of I-JEPA's blocks along each axis of the tokens, the same for a whole batch of equal grids."""

    target: tuple[int, ...]
    context: tuple[int, ...]


def block_sides(share: float, aspect: float, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of a block of this share of all tokens, at least 1: of a sequence its length, of a grid height and width,
    whose ratio is `aspect`."""
    area = int(math.prod(grid) * share)
    if len(grid) == 1:
        return (max(1, area),)
    sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return tuple(min(max(1, side), most) for side, most in zip(sides, grid, strict=True))


def blocks(
    generator: Generator, grid: tuple[int, ...], sides: Blocks, num_targets: int, min_context: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """I-JEPA's masks of one sample: target blocks that may overlap, (T,) bool each, and the context, (T,) bool.

    The context is a block without the targets, of at least `min_context` tokens; after 20 draws that have fewer it may
    hold the last target, after 20 more the one before too. Source: arXiv 2301.08243, section 3, and its code, whose
    blocks never touch the last row and column: these do.
    """
    targets = [_anywhere(generator, grid, sides.target) for _ in range(num_targets)]
    for kept_out in range(num_targets, -1, -1):
        barred = np.any(targets[:kept_out], axis=0) if kept_out else np.zeros(math.prod(grid), dtype=bool)
        for _ in range(20):
            context = _anywhere(generator, grid, sides.context) & ~barred
            if context.sum() >= min_context:
                return targets, context
    return targets, _anywhere(generator, grid, sides.context)


def _anywhere(generator: Generator, grid: tuple[int, ...], sides: tuple[int, ...]) -> np.ndarray:
    """A block of these sides, (cells,) bool."""
    cells = np.zeros(grid, dtype=bool)
    starts = [generator.integers(size - side + 1) for size, side in zip(grid, sides, strict=True)]
    cells[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))] = True
    return cells.reshape(-1)


def thinned(generator: Generator, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Contexts (T_row,) bool of a batch, thinned to the smallest share of any: random tokens leave.

    I-JEPA's code cuts the last ones instead, which are always those at the bottom. Rows of one length have equal
    counts.
    """
    least = min(rows, key=lambda row: row.mean())
    count, tokens = int(least.sum()), len(least)
    thin = []
    for row in rows:
        row = row.copy()
        surplus = int(row.sum()) - max(1, count * len(row) // tokens)
        row[generator.choice(np.flatnonzero(row), surplus, replace=False)] = False
        thin.append(row)
    return thin


def scattered(generator: Generator, num_tokens: int, ratio: float) -> np.ndarray:
    """data2vec 2.0's random mask: exactly int((1 - ratio) * T) tokens, chosen uniformly, stay visible, at least one.

    Returns (T,) bool.
    """
    hidden = np.ones(num_tokens, dtype=bool)
    hidden[generator.choice(num_tokens, num_visible(num_tokens, ratio), replace=False)] = False
    return hidden


def num_visible(num_tokens: int, ratio: float) -> int:
    """How many tokens `scattered` leaves visible."""
    return min(max(1, int(num_tokens * (1 - ratio))), max(1, num_tokens - 1))


def sometimes(generator: Generator, chance: float, hidden: np.ndarray) -> np.ndarray:
    """A mask (T,) with this chance, else one that hides nothing (iBOT, arXiv 2111.07832, section 3.3)."""
    return hidden if generator.random() < chance else np.zeros_like(hidden)


def stacked(rows: Sequence[np.ndarray], num_tokens: int) -> np.ndarray:
    """Rows (T_row,) bool -> (N, T) bool; nothing is hidden in the padding behind them."""
    hidden = np.zeros((len(rows), num_tokens), dtype=bool)
    for line, row in zip(hidden, rows, strict=True):
        line[: len(row)] = row
    return hidden


def visible(hidden: np.ndarray, num_kept: int) -> np.ndarray:
    """Hidden (N, T) bool -> keep (N, K): the indices of the visible tokens of each row, in their order.

    Shorter rows have fewer; padding behind them fills up their K, and attention passes over it.
    """
    return np.stack([np.flatnonzero(~line)[:num_kept] for line in hidden])


def equalise(generator: Generator, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Every row hides the same share: those with more unhide random single tokens, down to the batch's smallest share.

    For rows of one length this is the reference's `require_same_masks` (equal counts). Where lengths differ the share
    is made equal, not the count: else one short clip would thin the masks of all long ones.
    """
    if not rows:
        return rows
    share = min(row.mean() for row in rows)
    equal = []
    for row in rows:
        surplus = int(row.sum()) - max(1, round(share * len(row)))
        row = row.copy()
        if surplus > 0:
            row[generator.choice(np.flatnonzero(row), surplus, replace=False)] = False
        equal.append(row)
    return equal
