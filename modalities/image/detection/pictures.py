"""Pictures of what was found: images with their true boxes and those that a detector is sure of."""

from pathlib import Path

import numpy as np

from d2v.pictures import write_png
from d2v.protocols import ScoredSplit
from d2v.shown import in_figure

MOST = 8  # images
SURE = 0.3  # least score of a box that is drawn
TRUE = "#ffffff"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")  # of classes, in turn


def draw(names: list[str], split: ScoredSplit, found: list[np.ndarray], path: Path) -> None:
    """Writes the first images of a split as one PNG: true boxes white and dashed, found ones by the colour of a class.

    `found`: (n, 6) of each sample, as in its view.
    """
    from matplotlib.figure import Figure

    count = min(MOST, len(found))
    columns = min(4, count)
    figure = Figure(figsize=(4 * columns, 4.2 * -(-count // columns)), layout="constrained")
    figure.suptitle(f"dashed: true; coloured: found, with a score of {SURE} or more")
    for place in range(count):
        axes = figure.add_subplot(-(-count // columns), columns, place + 1)
        index = split.indices[place]
        picture, scale = split.samples.picture(index), split.samples.scale(index)
        width, height = picture.size
        axes.imshow(np.asarray(picture.convert("RGB")), extent=(0, width, height, 0))
        axes.set_axis_off()
        axes.set_title(in_figure(split.samples.ids[index]), fontsize=8)
        sure = found[place][found[place][:, 4] >= SURE]
        for box in split.labels[place]:
            _outline(axes, box[:4] / scale, TRUE, dashed=True)
        for box in sure:
            colour = COLOURS[int(box[5]) % len(COLOURS)]
            sides = (box[:4] / scale).clip(0, [width, height, width, height])
            _outline(axes, sides, colour, dashed=False)
            left, top = sides[:2]
            axes.text(left, top, f"{in_figure(names[int(box[5])])} {box[4]:.2f}", color=colour, fontsize=7, va="bottom")
    write_png(figure, path)


def _outline(axes, box: np.ndarray, colour: str, *, dashed: bool) -> None:
    left, top, right, bottom = box
    style = "--" if dashed else "-"
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, ls=style, lw=1.2)
