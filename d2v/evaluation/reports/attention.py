"""What the last block attends to, as pictures: for the class token, or, without one, all tokens on average.

B samples, H heads, E extra tokens, T tokens of a grid. As in DINO (arXiv 2104.14294), figure 1.
"""

import numpy as np
import torch
from torch import Tensor

from d2v.evaluation.features import frozen
from d2v.evaluation.figures import save_figure, shown, tiles_figure
from d2v.evaluation.report import Finding, Subject
from d2v.types import View

MAX_HEADS = 6
NEEDS = ("blocks", "grid")


def report(subject: Subject) -> Finding:
    """A row for each of evaluate.pictures samples: the sample, the mean of all heads, and the first heads."""
    split = subject.shown_split()
    chosen = np.unique(np.linspace(0, len(split.indices) - 1, subject.config.pictures).astype(int))
    view = split.samples.view(split.indices[chosen]).to(subject.device)
    rows, columns = subject.grid("attention", view.modality)
    weights, of_class = attention_of(subject.encoder, view)  # (B, H, T)
    maps = torch.cat([weights.mean(dim=1, keepdim=True), weights[:, :MAX_HEADS]], dim=1)
    maps = maps.unflatten(2, (rows, columns)).cpu().numpy()
    pixels = next(iter(view.inputs.values())).movedim(1, -1).cpu().numpy()  # (B, S, S, C)
    tiles = [[shown(picture), *heads] for picture, heads in zip(pixels, maps, strict=True)]
    headings = ["sample", "mean", *(f"head {number}" for number in range(1, maps.shape[1]))]
    query = "the class token" if of_class else "all tokens"
    figure = tiles_figure(tiles, headings, f"Attention of {query} in the last block: {subject.name}")
    save_figure(figure, subject.picture("attention"))
    entropy = torch.special.entr(weights / weights.sum(dim=-1, keepdim=True)).sum(dim=-1).mean(dim=0)  # (H,)
    spread = ", ".join(f"{value:.1f}" for value in entropy.exp().tolist())
    line = f"attention of {query} spreads over {spread} of {rows * columns} tokens, by head (exp of the entropy)"
    return Finding([line], {"query": query, "tokens": rows * columns, "spread_by_head": entropy.exp().tolist()})


def attention_of(encoder, view: View) -> tuple[Tensor, bool]:
    """Weights of the last block over the content tokens, (B, H, T), and whether they are of a class token."""
    attention = encoder.trunk.blocks[-1].attention
    calls: list[tuple] = []
    hook = attention.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
    try:
        with frozen(encoder):
            features = encoder(view)
            weights = attention.weights(*calls[0])  # (B, H, E + T, E + T)
    finally:
        hook.remove()
    num_extra = 0 if features.extra is None else features.extra.shape[1]
    queries = weights[:, :, 0] if num_extra else weights.mean(dim=2)
    return queries[..., num_extra:].float(), num_extra > 0
