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
from d2v.training.explained import EXPLAINED, explain

SHOWN, NEIGHBOURS, SIDE = 12, 5, 96  # samples of the data; queries' nearest; pixels of a picture's longer side
STATES = {
    "healthy": "#157f3b",
    "finished": "#1d4ed8",
    "too early": "#6b7280",
    "collapsing": "#b45309",
    "collapsed": "#b91c1c",
}
TITLES = {"curves": "Curves", "spectrum": "Spectrum of the features"}
STYLE = """
:root {--ink: #1c2430; --faint: #667085; --line: #e4e7ec; --ground: #f6f7f9}
* {box-sizing: border-box}
body {font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--ground); margin: 0; padding: 2.5rem 1rem 4rem}
main {max-width: 62rem; margin: 0 auto}
header, section {background: white; border: 1px solid var(--line); border-radius: .6rem; padding: 1.3rem 1.7rem;
  margin-bottom: 1.1rem}
h1 {font-size: 1.55rem; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 .8rem}
h2 {font-size: 1.1rem; margin: 0 0 .6rem}
p {margin: .4rem 0} .hint {color: var(--faint); font-size: .9rem; max-width: 48rem}
table {border-collapse: collapse; width: 100%; font-size: .92rem}
th {color: var(--faint); font-weight: 600; border-bottom: 2px solid var(--line)}
td, th {padding: .35rem 1rem .35rem 0; text-align: left; vertical-align: top}
tr + tr td {border-top: 1px solid var(--line)}
td {font-variant-numeric: tabular-nums} td:first-child {white-space: nowrap}
td.hint {font-size: .85rem; padding-right: 0}
pre {background: var(--ground); border-radius: .4rem; padding: .8rem 1rem; overflow-x: auto; margin: .4rem 0;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace}
img {max-width: 100%; display: block} .small img {image-rendering: pixelated; width: 100%; border-radius: .25rem}
.row {display: grid; grid-template-columns: repeat(6, 1fr); gap: .8rem; margin: .8rem 0}
figure {margin: 0; min-width: 0} .query figure:first-child {outline: 2px solid #1d4ed8; outline-offset: .25rem}
figcaption {font-size: .72rem; line-height: 1.3; color: var(--faint); overflow-wrap: anywhere; margin-top: .25rem}
.text {font-size: .78rem; line-height: 1.4; max-height: 7rem; overflow: hidden}
.state {color: white; font-weight: 600; padding: .15rem .7rem; border-radius: 1rem; margin-right: .4rem}
summary {cursor: pointer}
@media (max-width: 40rem) {.row {grid-template-columns: repeat(3, 1fr)}}
"""


class Map(NamedTuple):
    """A picture of what an encoder makes of a few samples, as PNG, and what it shows."""

    title: str
    hint: str
    png: bytes


class Summary(NamedTuple):
    """What a run's page says; all strings as they are, none is HTML."""

    title: str
    state: str
    reason: str
    advice: str
    headings: tuple[str, ...]  # of the numbers: what was measured, and where
    numbers: list[tuple[str, ...]]
    report: list[str]  # of the data
    settings: str  # as YAML
    commands: list[str]  # to go on with


class Shown(NamedTuple):
    """Samples of a page, and features (N, D) of those at `indices`, for their neighbours.

    None: they are not finite, or not measured.
    """

    samples: Samples
    indices: Sequence[int] | np.ndarray
    features: Tensor | None
    name: str = ""  # of a joint run: their modality


def write_page(folder: Path, summary: Summary, sets: Sequence[Shown], maps: Sequence[Map] = ()) -> None:
    """Writes folder/report.html from a run's numbers, the pictures beside it, samples and `maps`."""
    advice = f"<p><b>Advice:</b> {escape(summary.advice)}</p>" if summary.advice else ""
    state = f'<span class="state" style="background:{STATES[summary.state]}">{escape(summary.state)}</span>'
    found = "".join(f"<div>{escape(line)}</div>" for line in summary.report)
    settings = f"<details><summary>all of them</summary><pre>{escape(summary.settings)}</pre></details>"
    parts = [
        f"<header><h1>{escape(summary.title)}</h1><p>{state} {escape(summary.reason)}</p>{advice}",
        _hint(EXPLAINED["verdict"]) if summary.state != "finished" else "",
        "</header>",
        _section("Numbers", _numbers(summary.headings, summary.numbers)),
        *_drawn(folder),
        _section("Data", found + "".join(_row(_some(one)) for one in sets)),
        *(_neighbours(one) for one in sets),
    ]
    for one in maps:
        parts.append(_section(one.title, _hint(one.hint) + _picture(one.png, one.title)))
    parts.append(_section("Go on", f"<pre>{escape(chr(10).join(summary.commands))}</pre>"))
    parts.append(_section("Settings", settings))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(summary.title)}</title><style>{STYLE}</style>"
    with written(folder / "report.html") as temporary:
        body = f"<main>{''.join(parts)}</main>"
        page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
        temporary.write_text(page, "utf-8")


def _some(shown: Shown) -> list[str]:
    """A few samples of all."""
    return [_sample(shown.samples, index) for index in _spread(len(shown.samples), SHOWN)]


def _neighbours(shown: Shown) -> str:
    """A few samples with those nearest to them, or nothing."""
    samples, indices, features, name = shown
    if features is None or len(indices) <= NEIGHBOURS:
        return ""
    rows = nearest(features, _spread(len(indices), 4), NEIGHBOURS)
    pictures = ""
    for row in rows:
        pictures += _row([_sample(samples, int(indices[place])) for place in row], "query")
    hint = _hint("The first of each row is the query; a good encoder brings its own kind beside it.")
    return _section(f"Nearest samples, by the student's features{f': {name}' * bool(name)}", hint + pictures)


def nearest(features: Tensor, queries: Sequence[int], count: int) -> list[list[int]]:
    """Each query, and the `count` rows of features (N, D) that are nearest to it."""
    rows, places = features.numpy(), list(queries)
    near = cosines(rows[places], rows)
    near[range(len(places)), places] = np.inf  # itself first
    return np.argsort(-near, axis=1, kind="stable")[:, : count + 1].tolist()


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places among `total`, at equal distances."""
    return [place * total // count for place in range(count)] if total > count else list(range(total))


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def _numbers(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Each with the sentence that explains it."""
    lines = [f"<tr>{''.join(f'<th>{escape(heading)}</th>' for heading in headings)}<th>what it is</th></tr>"]
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f'<tr>{cells}<td class="hint">{escape(explain(row[0]))}</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def _drawn(folder: Path) -> list[str]:
    """The run's pictures, and those of evaluations that were made before."""
    of_parts = {}
    for kind, title in TITLES.items():
        for path in sorted(folder.glob(f"{kind}_*.png")):
            of_parts[path.name] = f"{title}, {path.stem.removeprefix(f'{kind}_')}"
    names = {
        **{f"{kind}.png": title for kind, title in TITLES.items()},
        **of_parts,
        "confusion_validation.png": "Which classes are taken for which, validation",
        "confusion_test.png": "Which classes are taken for which, test",
    }
    parts = []
    for path in [*(folder / name for name in names), *sorted((folder / "evaluation").rglob("*.png"))]:
        if path.is_file():
            parts.append(_section(names.get(path.name, path.stem), _picture(path.read_bytes(), path.name)))
    return parts


def _row(figures: list[str], kind: str = "") -> str:
    return f'<div class="row small {kind}">{"".join(figures)}</div>'


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
