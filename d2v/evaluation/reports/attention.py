"""What the last block attends to, as pictures: for the class token, or, without one, all tokens on average.

B samples, H heads, E extra tokens, T tokens of a grid. As in DINO (arXiv 2104.14294), figure 1.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2v.evaluation.features import frozen
from d2v.evaluation.figures import pictures, save_figure, tiles_figure
from d2v.evaluation.report import Finding, Subject
from d2v.types import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_HEADS = 6
NEEDS = ("blocks", "grid")


def report(subject: Subject) -> Finding:
    """A row for each of evaluate.pictures samples: the sample, the mean of all heads, and the first heads."""
    view = subject.shown_view()
    figure, finding = draw(subject.encoder, view, subject.grid("attention", view.modality), subject.name)
    save_figure(figure, subject.picture("attention"))
    return finding


def draw(encoder, view: View, grid: tuple[int, int], name: str) -> "tuple[Figure, Finding]":
    """A row for each sample of a view, and how far each head's attention spreads."""
    weights, of_class = attention_of(encoder, view)  # (B, H, T)
    maps = torch.cat([weights.mean(dim=1, keepdim=True), weights[:, :MAX_HEADS]], dim=1)
    maps = maps.unflatten(2, grid).cpu().numpy()
    tiles = [[picture, *heads] for picture, heads in zip(pictures(view), maps, strict=True)]
    headings = ["sample", "mean", *(f"head {number}" for number in range(1, maps.shape[1]))]
    query, tokens = "the class token" if of_class else "all tokens", grid[0] * grid[1]
    figure = tiles_figure(tiles, headings, f"Attention of {query} in the last block: {name}")
    entropy = torch.special.entr(weights / weights.sum(dim=-1, keepdim=True)).sum(dim=-1).mean(dim=0)  # (H,)
    spread = ", ".join(f"{value:.1f}" for value in entropy.exp().tolist())
    line = f"attention of {query} spreads over {spread} of {tokens} tokens, by head (exp of the entropy)"
    return figure, Finding([line], {"query": query, "tokens": tokens, "spread_by_head": entropy.exp().tolist()})


def attention_of(encoder, view: View) -> tuple[Tensor, bool]:
    """Weights of the last block over the content tokens, (B, H, T), and whether they are of a class token."""
    with frozen(encoder):
        features = encoder(view, output_attentions=True)
        weights = features.attentions[-1]  # (B, H, E + T, E + T)
    num_extra = 0 if features.extra is None else features.extra.shape[1]
    queries = weights[:, :, 0] if num_extra else weights.mean(dim=2)
    return queries[..., num_extra:].float(), num_extra > 0
