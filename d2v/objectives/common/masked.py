"""What methods that predict hidden tokens of one view ask of their batches.

B samples, M masks per sample, N = B * M rows, T tokens, K visible tokens.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from d2v.training.distributed import mine, world_size
from d2v.types import Mask, View


def check_hides(name: str, views: list[View]) -> Mask:
    """The mask of the one view. ValueError: more than one view, none hidden, or masks that leave tokens out."""
    check_one_view(name, views)
    if views[0].mask is None:
        raise ValueError(f"{name} predicts what is hidden, and data.views hides nothing: leave it out")
    if views[0].mask.keep is not None:
        raise ValueError(
            f"{name} encodes every token: the masks of this data.mask_kind leave some out; use its default"
        )
    return views[0].mask


def check_others(name: str, mask: Mask) -> None:
    """ValueError: a row hides one token, which has no other that it could be told from."""
    if (mask.hidden.sum(dim=1) == 1).any():
        raise ValueError(
            f"{name} takes negatives from the hidden tokens of the same row, and a row of the first batch hides "
            "only one: hide more of it (data.mask_prob, data.mask_length), or leave short rows out"
        )


def check_leaves_out(name: str, views: list[View]) -> Mask:
    """The mask of the one view. ValueError: more than one view, or masks without `keep`."""
    check_one_view(name, views)
    if views[0].mask is None or views[0].mask.keep is None:
        raise ValueError(
            f"{name} encodes what is visible: its masks need `keep`, the same number of tokens in every row "
            "(see data.mask_kind)"
        )
    return views[0].mask


def check_no_mask_token(name: str, encoder: nn.Module) -> None:
    """ValueError: the encoder has a mask token, which a method that leaves tokens out never trains."""
    for key, _ in encoder.frontends.named_parameters():  # type: ignore[union-attr, operator]
        if key.endswith("mask_token"):
            raise ValueError(
                f"{name} leaves out what is hidden: {key} would never be trained; set model.frontends.{key}=false"
            )


def check_one_view(name: str, views: list[View]) -> None:
    """ValueError: more than one view."""
    if len(views) > 1:
        raise ValueError(
            f"{name} predicts what is hidden of one view; data.views and data.local_views make {len(views)}: "
            "name one there, or none"
        )


def check_uncut(name: str, batch_size: int, parts: int) -> None:
    """ValueError: a batch cut into micro-batches, or that processes do not share evenly, of a method that looks at all
    of it."""
    world = world_size()
    if parts > world:
        raise ValueError(
            f"train.accumulate is {parts // world}; {name} looks at the tokens of a whole batch: it must be 1"
        )
    if batch_size % world:
        raise ValueError(f"train.batch_size {batch_size} must be a multiple of the number of processes, {world}")


def row_generators(seed: int, step: int, rows: int, device: torch.device) -> Iterator[torch.Generator]:
    """One for each of this process's `rows`: a function of seed, step and the row's place in the global batch."""
    for place in mine(rows, torch.device("cpu")).tolist():
        (word,) = np.random.SeedSequence((seed, step, place)).generate_state(1)
        yield torch.Generator(device).manual_seed(int(word))


def only_kept(mask: Mask, padding: Tensor | None) -> Mask:
    """The mask of a pass that knows of nothing but the tokens `keep` (R, K), whatever is predicted: all else is hidden.

    Positions that are computed from tokens would tell of those that are neither kept nor predicted.
    """
    assert mask.keep is not None
    shown = torch.zeros(len(mask.keep), mask.hidden.shape[1], dtype=torch.bool, device=mask.keep.device)
    hidden = ~shown.scatter(1, mask.keep, True)  # (R, T)
    if padding is not None:
        hidden &= ~padding.repeat_interleave(len(hidden) // len(padding), dim=0)
    return Mask(hidden, mask.keep)


def some_of(hidden: Tensor, share: float, samples: int, seed: int, step: int) -> Tensor:
    """A share of each row's hidden tokens, at least one, drawn anew in each step: (N, T) bool of (N, T) bool."""
    scores = []
    for generator in row_generators(seed, step, samples, hidden.device):
        shape = len(hidden) // samples, hidden.shape[1]
        scores.append(torch.rand(shape, generator=generator, device=hidden.device))
    ranks = torch.cat(scores).masked_fill(~hidden, 2.0).argsort(dim=1).argsort(dim=1)  # (N, T), hidden ones first
    wanted = (hidden.sum(dim=1, keepdim=True) * share).round().clamp(min=1)
    return (ranks < wanted) & hidden
