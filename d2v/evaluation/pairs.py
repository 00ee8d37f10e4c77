"""What a model that brings two modalities to one space is worth: each side's samples are sought by the other's.

n samples of a side, P width of the space.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from d2v import files
from d2v.evaluation.features import readable_vectors
from d2v.evaluation.figures import Tile, hits_figure, save_figure
from d2v.evaluation.retrieval import HITS, Found, first_hits, modality_gap, retrieve
from d2v.evaluation.table import markdown_of
from d2v.files import written
from d2v.reading import Reader, named
from d2v.shown import in_markdown

QUERIES, SHOWN = 3, 6  # of the picture: queries of each side, and what each found
LEAST = 4  # rows of a side that the modality gap needs


class Side(NamedTuple):
    """The samples of one modality, and by which labels they belong to those of the other."""

    modality: str
    samples: Any  # ids, lengths, view, picture of Samples
    labels: Sequence | np.ndarray | None = None  # (n,); of both sides or of none
    files: np.ndarray | None = None  # (n,) equal where samples are of the same file, as of images with several captions


class PairReport(NamedTuple):
    """What was measured: for a person, for a file and for a picture."""

    table: str  # in Markdown
    lines: list[str]
    numbers: dict[str, Any]  # plain, for JSON; percentages
    hits: list[list[Tile]]  # of the first model: some queries, and what they found
    title: str  # of a picture of these


def retrieval_report(
    models: Mapping[str, Any],
    first: Side,
    second: Side,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    max_bad_share: float = 0.0,
    seed: int = 0,
) -> PairReport:
    """Retrieval in both directions and the modality gap, for each of `models` by name; the picture is of the first.

    A model has `project(view) -> (B, P)`, unit vectors. Samples of equal labels are right for one another. Without
    labels the rows are pairs, and where a side is words, rows of the same words are right too; a row that one side
    cannot read is left out on both. `seed`: of the halves of the gap's classifier and of what is shown. ValueError:
    sides without labels that are of different lengths, labels of one side alone, too many samples that cannot be read.
    """
    by_row = first.labels is None and second.labels is None
    if by_row and len(first.samples) != len(second.samples):
        raise ValueError(
            f"{len(first.samples)} samples of {first.modality} and {len(second.samples)} of {second.modality} "
            "are no pairs; without labels, rows are"
        )
    readers = [Reader(max_bad_share), Reader(max_bad_share)]
    chosen = [
        reader.readable(side.samples, np.arange(len(side.samples)), batch_size)
        for reader, side in zip(readers, (first, second), strict=True)
    ]
    if by_row:
        chosen = [np.intersect1d(chosen[0], chosen[1])] * 2
        if not len(chosen[0]):
            raise ValueError(f"no row can be read on both sides: {named(readers[0].bad | readers[1].bad)}")
    sides = (first, second)
    chosen, labels = _once(sides, chosen) if by_row else (chosen, None)
    labels = labels or _labels(sides, chosen)
    lines, numbers, rows, hits = _of_data(sides, chosen, readers), {}, [], []
    for name, model in models.items():
        vectors = [
            readable_vectors(reader, model, side.samples, batch_size, device, indices=places)[1]
            for reader, side, places in zip(readers, sides, chosen, strict=True)
        ]
        numbers[name], some = _measured(name, sides, vectors, labels, seed)
        rows += some
        lines.append(_of_gap(name, numbers[name]["gap"]))
        hits = hits or _hits(sides, chosen, vectors, labels, seed)
    table = _table(rows, with_precision=labels[0] is not None)
    kinds = f"{first.modality} and {second.modality}"
    return PairReport(table, lines, numbers, hits, f"{kinds}, {next(iter(models))}: right ones are framed in green")


def write_report(report: PairReport, folder: Path, name: str = "retrieval") -> list[Path]:
    """Writes the numbers as JSON and the picture as PNG, each whole; returns their paths."""
    numbers, picture = folder / f"{name}.json", folder / f"{name}.png"
    files.check_file(numbers)
    save_figure(hits_figure(report.hits, report.title), picture)
    files.record(folder, [numbers.name])
    with written(numbers) as temporary:
        temporary.write_text(json.dumps(report.numbers, indent=1) + "\n")
    return [numbers, picture]


def _once(sides: tuple[Side, Side], chosen: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Rows of pairs, of which a file that several name counts once, with the file as the label of all; None: none is.

    So the retrieval of images with several captions is scored (Flickr30k, COCO).
    """
    for number, side in enumerate(sides):
        files_of_rows = None if side.files is None else side.files[chosen[number]]
        if files_of_rows is not None and len(np.unique(files_of_rows)) < len(files_of_rows):
            kept = np.sort(np.unique(files_of_rows, return_index=True)[1])
            chosen, labels = [*chosen], [files_of_rows, files_of_rows]
            chosen[number], labels[number] = chosen[number][kept], files_of_rows[kept]
            return chosen, labels
    return chosen, None


def _labels(sides: tuple[Side, Side], chosen: Sequence[np.ndarray]) -> Sequence[Any]:
    """Labels of the chosen rows of both sides, given or by equal words; None, None: rows alone are pairs."""
    if sides[0].labels is not None or sides[1].labels is not None:
        return [
            None if side.labels is None else np.asarray(side.labels)[places]
            for side, places in zip(sides, chosen, strict=True)
        ]
    for side in sides:
        if isinstance(side.samples.picture(int(chosen[0][0])), str):
            words = np.array([side.samples.picture(int(place)) for place in chosen[0]])
            return [words, words] if len(np.unique(words)) < len(words) else [None, None]
    return [None, None]


def _of_data(sides: tuple[Side, Side], chosen: Sequence[np.ndarray], readers: Sequence[Reader]) -> list[str]:
    """How many rows there are, and which were left out."""
    lines = [" and ".join(f"{len(some)} of {side.modality}" for side, some in zip(sides, chosen, strict=True))]
    for side, reader in zip(sides, readers, strict=True):
        if reader.bad:
            lines.append(f"left out, {side.modality} cannot be read: {len(reader.bad)}: {named(reader.bad)}")
    return lines


Row = tuple[str, str, Found]  # the model, the direction, what was found


def _measured(
    name: str, sides: tuple[Side, Side], vectors: Sequence[np.ndarray], labels: Sequence[Any], seed: int
) -> tuple[dict[str, Any], list[Row]]:
    """Numbers and rows of one model."""
    numbers: dict[str, Any] = {}
    rows = []
    for one, other in ((0, 1), (1, 0)):
        found = retrieve(vectors[one], vectors[other], labels[one], labels[other])
        direction = f"{sides[one].modality} to {sides[other].modality}"
        rows.append((name, direction, found))
        numbers[direction] = _plain(found)
    numbers["gap"] = None
    if min(map(len, vectors)) >= LEAST:
        gap = modality_gap(*vectors, seed=seed)
        numbers["gap"] = {"distance": gap.distance, "accuracy": 100 * gap.accuracy}
    return numbers, rows


def _plain(found: Found) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for k in HITS:
        numbers |= {f"recall@{k}": 100 * found.recall[k], f"chance@{k}": 100 * found.chance[k]}
    return numbers | {
        "median_rank": found.median_rank,
        "mean_average_precision": 100 * found.mean_average_precision,
        "chance_of_precision": 100 * found.chance_of_precision,
        "queries": found.queries,
        "items": found.items,
    }


def _of_gap(name: str, gap: dict[str, float] | None) -> str:
    if gap is None:
        return f"{name}: fewer than {LEAST} rows of a side, too few for the modality gap"
    return (
        f"{name}: modality gap: the means of the sides lie {gap['distance']:.2f} apart (0 to 2), and a linear "
        f"classifier tells {gap['accuracy']:.1f} % of held-out rows apart (50: it cannot)"
    )


def _table(rows: Sequence[Row], *, with_precision: bool) -> str:
    head = ["model", "query to hit"]
    for k in HITS:
        head += [f"recall@{k}", "chance"]
    head += ["median rank", "of"] + ["mAP", "chance"] * with_precision
    cells = [head]
    for name, direction, found in rows:
        line = [in_markdown(name), in_markdown(direction)]
        for k in HITS:
            line += [f"{100 * found.recall[k]:.1f}", f"{100 * found.chance[k]:.1f}"]
        line += [f"{found.median_rank:g}", str(found.items)]
        if with_precision:
            line += [f"{100 * found.mean_average_precision:.1f}", f"{100 * found.chance_of_precision:.1f}"]
        cells.append(line)
    return markdown_of(cells)


def _hits(
    sides: tuple[Side, Side],
    chosen: Sequence[np.ndarray],
    vectors: Sequence[np.ndarray],
    labels: Sequence[Any],
    seed: int,
) -> list[list[Tile]]:
    """Some queries of each side, and their first hits."""
    rows = []
    for one, other in ((0, 1), (1, 0)):
        queries = np.random.default_rng(seed).permutation(len(chosen[one]))[:QUERIES]
        hits = first_hits(vectors[one][queries], vectors[other], SHOWN)
        for query, places in zip(queries, hits, strict=True):
            row = [_tile(sides[one], chosen[one][query], False)]
            for place in places:
                right = query == place if labels[one] is None else labels[one][query] == labels[other][place]
                row.append(_tile(sides[other], chosen[other][place], bool(right)))
            rows.append(row)
    return rows


def _tile(side: Side, index: Any, right: bool) -> Tile:
    return Tile(side.samples.picture(int(index)), side.samples.ids[index], right)
