"""report.html: a run as one page without network: pictures are in it, and nothing of the user's becomes markup."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from d2v.evaluation.nearest import cosines
from d2v.files import written
from d2v.protocols import Samples

SHOWN, NEIGHBOURS, SIDE = 12, 5, 96  # samples of the data; queries' nearest; pixels of a picture's longer side
STATES = {"healthy": "#157f3b", "too early": "#6b7280", "collapsing": "#b45309", "collapsed": "#b91c1c"}
STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937}
h1 {font-size: 1.5rem} h2 {font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #e5e7eb}
table {border-collapse: collapse} td, th {padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top}
pre {background: #f3f4f6; padding: .7rem; overflow-x: auto; font-size: 13px}
img {max-width: 100%} .small img {image-rendering: pixelated; width: 96px}
.row {display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0} figure {margin: 0; max-width: 9rem}
figcaption {font-size: 11px; color: #6b7280; overflow-wrap: anywhere}
.text {font-size: 12px; max-height: 6rem; overflow: hidden}
.state {color: white; padding: .1rem .6rem; border-radius: .3rem}
"""


class Summary(NamedTuple):
    """What a run's page says; all strings as they are, none is HTML."""

    title: str
    state: str
    reason: str
    advice: str
    numbers: list[tuple[str, str, str]]  # what was measured, at the random init, at the end
    report: list[str]  # of the data
    settings: str  # as YAML
    commands: list[str]  # to go on with


def write_page(
    folder: Path, summary: Summary, samples: Samples, indices: Sequence[int], features: Tensor | None
) -> None:
    """Writes folder/report.html from a run's numbers and the pictures beside it.

    `features` (N, D) of the samples at `indices`, for their neighbours; None: they are not finite, or not measured.
    """
    parts = [
        f"<h1>{escape(summary.title)}</h1>",
        f'<p><span class="state" style="background:{STATES[summary.state]}">{escape(summary.state)}</span> '
        f"{escape(summary.reason)}</p>",
        f"<p><b>Advice:</b> {escape(summary.advice)}</p>" if summary.advice else "",
        _numbers(summary.numbers),
        *_drawn(folder),
        "<h2>Data</h2>",
        *[f"<div>{escape(line)}</div>" for line in summary.report],
        _row([_sample(samples, index) for index in _spread(len(samples), SHOWN)]),
    ]
    if features is not None and len(indices) > NEIGHBOURS:
        parts += ["<h2>Nearest samples, by the student's features</h2>", "<p>The first of each row is the query.</p>"]
        for row in nearest(features, _spread(len(indices), 4), NEIGHBOURS):
            parts.append(_row([_sample(samples, int(indices[place])) for place in row]))
    commands = "\n".join(summary.commands)
    parts += ["<h2>Go on</h2>", f"<pre>{escape(commands)}</pre>", "<h2>Settings</h2>"]
    parts.append(f"<details><summary>all of them</summary><pre>{escape(summary.settings)}</pre></details>")
    head = f'<meta charset="utf-8"><title>{escape(summary.title)}</title><style>{STYLE}</style>'
    with written(folder / "report.html") as temporary:
        page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
        temporary.write_text(page, "utf-8")


def nearest(features: Tensor, queries: Sequence[int], count: int) -> list[list[int]]:
    """Each query, and the `count` rows of features (N, D) that are nearest to it."""
    rows, places = features.numpy(), list(queries)
    near = cosines(rows[places], rows)
    near[range(len(places)), places] = np.inf  # itself first
    return np.argsort(-near, axis=1, kind="stable")[:, : count + 1].tolist()


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places among `total`, at equal distances."""
    return [place * total // count for place in range(count)] if total > count else list(range(total))


def _numbers(rows: list[tuple[str, str, str]]) -> str:
    head = "<tr><th>measured</th><th>random init</th><th>end</th></tr>"
    lines = []
    for row in rows:
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<h2>Numbers</h2><table>{head}{''.join(lines)}</table>"


def _drawn(folder: Path) -> list[str]:
    """The run's pictures, and those of evaluations that were made before."""
    names = {"curves.png": "Curves", "spectrum.png": "Spectrum of the features"}
    parts = []
    for path in [*(folder / name for name in names), *sorted((folder / "evaluation").rglob("*.png"))]:
        if path.is_file():
            parts.append(f"<h2>{escape(names.get(path.name, path.stem))}</h2>{_picture(path.read_bytes(), path.name)}")
    return parts


def _row(figures: list[str]) -> str:
    return f'<div class="row small">{"".join(figures)}</div>'


def _sample(samples: Samples, index: int) -> str:
    """A sample as a figure with its id; what cannot be read any more is said."""
    name = escape(samples.ids[index])
    try:
        shown = samples.picture(index)
    except ValueError as error:
        shown = str(error)
    if isinstance(shown, str):
        return f'<figure><div class="text">{escape(shown[:300])}</div><figcaption>{name}</figcaption></figure>'
    shown = shown.convert("RGB")
    shown.thumbnail((2 * SIDE, 2 * SIDE))
    file = io.BytesIO()
    shown.save(file, "png")
    return f"<figure>{_picture(file.getvalue(), samples.ids[index])}<figcaption>{name}</figcaption></figure>"


def _picture(png: bytes, name: str) -> str:
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
