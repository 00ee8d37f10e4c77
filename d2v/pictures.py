"""What all pictures share: how axes look, and how a figure becomes a PNG."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v.files import written

if TYPE_CHECKING:  # matplotlib takes a second to import, and training does not need it
    from matplotlib.figure import Figure


def write_png(figure: "Figure", path: Path) -> None:
    """A figure as PNG, whole or not at all."""
    with written(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        figure.savefig(temporary, dpi=120, format="png")


def tidy(axes: Any) -> None:
    """A light grid, and no frame above and to the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
