"""The three main directions of all tokens' features as red, green and blue: parts that are alike have one colour.

B samples, T tokens of a grid, D width. As in DINOv2 (arXiv 2304.07193), figure 1, without its foreground mask.
"""

import numpy as np
import torch
from torch import Tensor

from d2v.evaluation.features import frozen, layer_tokens
from d2v.evaluation.figures import save_figure, shown, tiles_figure
from d2v.evaluation.report import Finding, Subject

NEEDS = ("tokens", "grid")


def report(subject: Subject) -> Finding:
    """A row for each of evaluate.pictures samples: the sample, and its tokens for each encoder."""
    split = subject.shown_split()
    chosen = np.unique(np.linspace(0, len(split.indices) - 1, subject.config.pictures).astype(int))
    view = split.samples.view(split.indices[chosen]).to(subject.device)
    grid = subject.grid("patches", view.modality)
    pixels = next(iter(view.inputs.values())).movedim(1, -1).cpu().numpy()  # (B, S, S, C)
    columns, shares = [[shown(picture) for picture in pixels]], {}
    for name, encoder in subject.encoders.items():
        with frozen(encoder):
            x = layer_tokens(encoder, view, [subject.layer], "evaluate.layer")[0][subject.layer]  # (B, T, D)
        colours, shares[name] = main_directions(x.float())
        columns.append(list(shown(colours.reshape(-1, 1, 3).cpu().numpy()).reshape(len(pixels), *grid, 3)))
    figure = tiles_figure(
        list(zip(*columns, strict=True)),
        ["sample", *subject.encoders],
        f"Main directions of the tokens: {subject.name}",
    )
    save_figure(figure, subject.picture("patches"))
    lines = [
        f"patches of {name}: three directions hold {100 * sum(share):.0f} % of the variance"
        for name, share in shares.items()
    ]
    return Finding(lines, {"variance": shares})


def main_directions(x: Tensor) -> tuple[Tensor, list[float]]:
    """(B, T, D) -> coordinates along the three largest principal components of all B * T tokens, (B, T, 3).

    And the shares of the variance along each.
    """
    flat = x.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    coordinates = (flat @ vectors[:, -3:].flip(1)).unflatten(0, x.shape[:2])
    return coordinates, (values[-3:].flip(0) / values.sum().clamp(min=1e-30)).tolist()
