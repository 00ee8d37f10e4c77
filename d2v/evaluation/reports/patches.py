"""The three main directions of all tokens' features as red, green and blue: parts that are alike have one colour.

B samples, T tokens of a grid, D width. As in DINOv2 (arXiv 2304.07193), figure 1, without its foreground mask.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2v.evaluation.features import frozen, layer_tokens
from d2v.evaluation.figures import pictures, save_figure, shown, tiles_figure
from d2v.evaluation.report import Finding, Subject
from d2v.types import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS = ("tokens", "grid")


def report(subject: Subject) -> Finding:
    """A row for each of evaluate.pictures samples: the sample, and its tokens for each encoder."""
    view = subject.shown_view()
    encoders, grid = subject.encoders, subject.grid("patches", view.modality)
    figure, finding = draw(encoders, view, grid, subject.name, subject.layer)
    save_figure(figure, subject.picture("patches"))
    return finding


def draw(
    encoders: Mapping[str, Any], view: View, grid: tuple[int, int], name: str, layer: str = "last"
) -> "tuple[Figure, Finding]":
    """A row for each sample of a view, and how much of the variance the directions hold."""
    columns, shares = [list(pictures(view))], {}
    for title, encoder in encoders.items():
        with frozen(encoder):
            x = layer_tokens(encoder, view, [layer], "evaluate.layer")[0][layer]  # (B, T, D)
        colours, shares[title] = main_directions(x.float())
        columns.append(list(shown(colours.reshape(-1, 1, 3).cpu().numpy()).reshape(len(x), *grid, 3)))
    rows = list(zip(*columns, strict=True))
    figure = tiles_figure(rows, ["sample", *encoders], f"Main directions of the tokens: {name}")
    lines = [
        f"patches of {title}: three directions hold {100 * sum(share):.0f} % of the variance"
        for title, share in shares.items()
    ]
    return figure, Finding(lines, {"variance": shares})


def main_directions(x: Tensor) -> tuple[Tensor, list[float]]:
    """(B, T, D) -> coordinates along the three largest principal components of all B * T tokens, (B, T, 3).

    And the shares of the variance along each.
    """
    flat = x.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    coordinates = (flat @ vectors[:, -3:].flip(1)).unflatten(0, x.shape[:2])
    return coordinates, (values[-3:].flip(0) / values.sum().clamp(min=1e-30)).tolist()
