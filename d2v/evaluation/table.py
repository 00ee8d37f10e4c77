"""The table of an evaluation: rows of scores, their mean over several encoders, and Markdown."""

from typing import NamedTuple

import numpy as np

from d2v.shown import in_markdown


class Row(NamedTuple):
    """One line of the table: percentages by the score's name; means and their spread if of several encoders."""

    model: str
    layer: str
    dim: int
    scores: dict[str, float]
    spread: dict[str, float] = {}  # noqa: RUF012 a NamedTuple's default, never changed


def average(name: str, runs: list[list[Row]]) -> list[Row]:
    """Rows of the same layers from several encoders: their mean, and the standard deviation between encoders."""
    return [_average_row(name, list(rows)) for rows in zip(*runs, strict=True)]


def _average_row(name: str, rows: list[Row]) -> Row:
    """One row from those of one layer; a single encoder has no spread."""
    means, spread = {}, {}
    for score in rows[0].scores:
        values = np.array([row.scores[score] for row in rows])
        means[score] = float(values.mean())
        if len(rows) > 1:
            spread[score] = float(values.std(ddof=1))
    return Row(name, rows[0].layer, rows[0].dim, means, spread)


def markdown_table(rows: list[Row]) -> str:
    """A table in Markdown, one line a row."""
    names: dict[str, None] = {}  # a set that keeps its order
    for row in rows:
        names.update(dict.fromkeys(row.scores))
    cells = [["features", "layer", "dim", *names]]
    for row in rows:
        cells.append([in_markdown(row.model), row.layer, str(row.dim), *(_cell(row, name) for name in names)])
    return markdown_of(cells)


def markdown_of(cells: list[list[str]]) -> str:
    """A table in Markdown of cells that are ready for it, those of its head first."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(row: Row, score: str) -> str:
    if score not in row.scores:
        return "-"
    spread = f" ±{row.spread[score]:.1f}" if score in row.spread else ""
    return f"{row.scores[score]:.1f}{spread}"
