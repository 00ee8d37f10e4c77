"""Pictures of an evaluation: curves over a common axis, rows of small images, and what queries found."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2v import files
from d2v.pictures import tidy, write_png
from d2v.shown import in_figure, printable
from d2v.types import View

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Points, and what they spread about their mean if several runs are behind each."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def save_figure(figure: "Figure", path: Path) -> None:
    """PNG, whole or not at all. ValueError: a file of that name is there, and d2v did not write it."""
    files.check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.record(path.parent, [path.name])
    write_png(figure, path)


def lines_figure(curves: Mapping[str, Curve], *, title: str, xlabel: str, ylabel: str, log: bool = False) -> "Figure":
    """One line a curve; `log`: of the x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        style = ":" if "random init" in name else "-"
        (line,) = axes.plot(curve.x, curve.y, style, marker="o", markersize=3, linewidth=1.4, label=in_figure(name))
        if curve.spread is not None:
            low, high = np.array(curve.y) - curve.spread, np.array(curve.y) + curve.spread
            axes.fill_between(curve.x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(title=in_figure(title), xlabel=xlabel, ylabel=ylabel)
    if log:
        places = sorted(set().union(*(curve.x for curve in curves.values())))
        axes.set(xscale="log", xticks=places, xticklabels=[f"{x:g}" for x in places])
        axes.minorticks_off()
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def tiles_figure(rows: Sequence[Sequence[np.ndarray]], headings: Sequence[str], title: str) -> "Figure":
    """Images in a grid, with headings of columns: (H, W, 3) in 0 to 1 as they are, (H, W) from least to most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * len(headings) + 0.2, 1.5 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), len(headings), squeeze=False)
    for number, row in enumerate(rows):
        for axes, tile, heading in zip(grid[number], row, headings, strict=True):
            axes.imshow(tile, cmap="viridis", interpolation="nearest")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(in_figure(heading), fontsize=9)
    figure.suptitle(in_figure(title), fontsize=10)
    return figure


class Tile(NamedTuple):
    """A sample as a person sees it, as `Samples.picture` gives it, and a line below it."""

    picture: Any  # of Pillow, or words
    caption: str = ""
    right: bool = False  # it is framed


def hits_figure(rows: Sequence[Sequence[Tile | None]], title: str) -> "Figure":
    """A row for each query: the query, and what it found, the nearest first; right ones in a green frame.

    None leaves a place empty: more hits of the query above.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    width, height = 1.5 * columns + 0.3, 1.65 * len(rows) + 0.6
    figure = Figure(figsize=(width, height))
    # A narrow column without axes sets the queries apart; all squares are alike, and need no layout that is sought.
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1, 0.08] + [1] * (columns - 1))
    grid.update(
        left=0.1 / width, right=1 - 0.1 / width, bottom=0.25 / height, top=1 - 0.5 / height, hspace=0.15, wspace=0.08
    )
    for number, row in enumerate(rows):
        for place, tile in enumerate(row):
            if tile is None:
                continue
            axes = figure.add_subplot(grid[number, place and place + 1])
            _draw_tile(axes, tile, is_query=place == 0)
            if number == 0:
                axes.set_title(str(place) if place else "query", fontsize=9)
    figure.suptitle(in_figure(title), fontsize=10, y=1 - 0.08 / height)  # in inches; else it sinks with each row
    return figure


def _draw_tile(axes: Any, tile: Tile, *, is_query: bool) -> None:
    """A square with a picture as large as fits, or with words."""
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="#f6f7f9")
    if isinstance(tile.picture, str):
        lines = textwrap.wrap(printable(tile.picture), 19, max_lines=8, placeholder=" ...")
        axes.text(0.5, 0.5, "\n".join(map(in_figure, lines)), fontsize=7, ha="center", va="center")
    else:
        small = tile.picture.convert("RGB")
        small.thumbnail((256, 256))
        width, height = small.width / max(small.size), small.height / max(small.size)
        place = (0.5 - width / 2, 0.5 + width / 2, 0.5 - height / 2, 0.5 + height / 2)
        axes.imshow(np.asarray(small), extent=place, interpolation="nearest")
        axes.set(xlim=(0, 1), ylim=(0, 1))  # imshow narrows them
    caption = tile.caption if len(tile.caption) <= 28 else f"...{tile.caption[-25:]}"  # of a path its end
    axes.set_xlabel(in_figure(caption), fontsize=6, labelpad=3)
    colour = "#15803d" if tile.right else "#1d4ed8" if is_query else "#d5d9e0"
    axes.spines[:].set(color=colour, linewidth=3 if tile.right else 1)


def shown(values: np.ndarray) -> np.ndarray:
    """(H, W, C) of any range -> (H, W, 3) in 0 to 1; one channel becomes grey, more than three lose the last."""
    values = np.repeat(values, 3, axis=2) if values.shape[2] < 3 else values[..., :3]
    low, high = values.min(axis=(0, 1), keepdims=True), values.max(axis=(0, 1), keepdims=True)
    return (values - low) / np.maximum(high - low, 1e-12)


def pictures(view: View) -> list[np.ndarray]:
    """The samples of a view of pixel_values (B, C, S, S) or the like, as `shown`."""
    return [shown(pixels) for pixels in next(iter(view.inputs.values())).movedim(1, -1).cpu().numpy()]
