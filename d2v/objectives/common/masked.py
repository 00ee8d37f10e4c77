"""What methods that predict hidden tokens of one view have in common.

B samples, N masked rows, R rows that are encoded, T tokens, K visible tokens, n predicted tokens in all.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.transformer import taken
from d2v.training.distributed import mine
from d2v.types import Mask, View, numbers_of


def masked_view(views: list[View], method: str, *, keep: bool) -> tuple[View, Mask]:
    """The view and its mask. ValueError: several, nothing hidden, or masks that leave tokens out (`keep`: none)."""
    if len(views) > 1:
        raise ValueError(
            f"{method} predicts what is hidden of one view; data.views and data.local_views (or "
            f"data.reference_teacher_input) make {len(views)}: leave them out"
        )
    (view,) = views
    if view.mask is None:
        raise ValueError(
            f"{method} predicts what is hidden of one view; data.views makes views in which nothing is: leave it out"
        )
    if keep and view.mask.keep is None:
        raise ValueError(
            f"{method} encodes what is visible: its masks need `keep`, the same number of tokens in every row (see "
            "data.mask_kind)"
        )
    if not keep and view.mask.keep is not None:
        raise ValueError(
            f"{method} encodes every token: the masks of this data.mask_kind leave some out; use its default"
        )
    return view, view.mask


def refuse_mask_token(encoder: D2vModel, method: str) -> None:
    """ValueError: the encoder has a mask token, which a method that leaves out what is hidden would never train."""
    tokens = [name for name, _ in encoder.frontends.named_parameters() if name.endswith("mask_token")]
    if tokens:
        raise ValueError(
            f"{method} leaves out what is hidden: {tokens[0]} would never be trained; "
            f"set model.frontends.{tokens[0]}=false"
        )


def frontend_of(encoder: D2vModel) -> Any:
    """The one frontend of an encoder in pretraining, a d2v.protocols.Frontend."""
    (frontend,) = encoder.frontends.values()
    return frontend


def repeated(x: Tensor | None, mask: Mask) -> Tensor | None:
    """(B, ...) -> (N, ...), the rows of a sample's masks next to each other."""
    return x if x is None else x.repeat_interleave(len(mask.hidden) // len(x), dim=0)


def at(x: Tensor, mask: Mask) -> Tensor:
    """Of each sample (B, T, ...) the hidden tokens (N, T) of each of its masks, (n, ...)."""
    return of_samples(x, mask, hidden_at(mask))


def of_samples(x: Tensor, mask: Mask, where: Tensor) -> Tensor:
    """Of each sample (B, T, ...) the tokens of the numbers `where` (n,), row * T + place, of its masks: (n, ...)."""
    masks, tokens = len(mask.hidden) // len(x), x.shape[1]
    return taken(x, where if masks == 1 else where // tokens // masks * tokens + where % tokens)


def real_at(view: View) -> Tensor:
    """Which tokens of a padded view are no padding, (n,) numbers row * T + place."""
    assert view.padding is not None
    return numbers_of(~view.padding) if view.real_at is None else view.real_at


def share_of(predicted: Tensor, padding: Tensor | None) -> Tensor:
    """Which share of the real tokens (N, T) is predicted, ()."""
    return predicted.sum() / (predicted.numel() if padding is None else (~padding).sum())


def chosen(mask: Mask) -> Tensor:
    """Words that are predicted, (N, T): those that are hidden, and in BERT's variant the replaced and kept ones too."""
    return mask.hidden if mask.chosen is None else mask.chosen


def cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross entropy of logits (n, C) and numbers (n,), in float32; the share that comes first."""
    logits = logits.float()
    with torch.no_grad():
        accuracy = (logits.argmax(dim=1) == wanted).sum() / max(len(wanted), 1)
    return F.cross_entropy(logits, wanted, reduction="sum"), accuracy


def over_rows(values: Tensor, where: Tensor, at: Tensor) -> Tensor:
    """Sum over rows of the mean of values (n,) of the tokens `where` (B, T) of each, whose numbers are `at` (n,); 0 of
    a row without any."""
    return (values * taken(where / where.sum(dim=1, keepdim=True).clamp(min=1), at)).sum()


def uniforms(ids: Tensor, step: int, seed: int) -> Tensor:
    """Numbers (B, T) in [0, 1] that depend on the row's own words, the place and the step: whatever process has a row,
    and in whatever micro-batch, it draws the same. The mixing is that of MurmurHash3."""
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    x = (ids * (places * 2_654_435_761 % 2**31)).sum(dim=1, keepdim=True) + (step + 1) * 40_503 + seed * 69_069
    x = (x + places * 668_265_263) % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return (x ^ (x >> 16)) / 2**32


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Words (n,) drawn from the softmax of logits (n, V), each by its uniform number (n,)."""
    ends = logits.softmax(dim=1).cumsum(dim=1)
    return (ends < uniform[:, None] * ends[:, -1:]).sum(dim=1).clamp(max=logits.shape[1] - 1)


def check_others(name: str, mask: Mask) -> None:
    """ValueError: a row hides one token, which has no other that it could be told from."""
    if (mask.known.sum(dim=1) == 1).any():
        raise ValueError(
            f"{name} takes negatives from the hidden tokens of the same row, and a row of the first batch hides "
            "only one: hide more of it (data.mask_prob, data.mask_length), or leave short rows out"
        )


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
