"""Boxes from a table, a row a box: file, label, xmin, ymin, xmax, ymax, and split where it holds several.

A row whose cells of a box are all empty is an image without boxes.
"""

import math
import os
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from d2v.modalities.common import table_files
from d2v.modalities.common.folders import is_ignored
from d2v.modalities.common.kinds import IMAGES, is_of, named
from d2v.modalities.common.split_column import LEFT, NAME
from d2v.modalities.common.splits import choose
from d2v.modalities.common.tables import PATH_COLUMNS, number
from d2v.modalities.image.detection.annotated import Annotated, Box, found_below, in_split
from d2v.protocols import NoSplitError

SIDES = ("xmin", "ymin", "xmax", "ymax")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read(files: list[Path], root: Path, split: str, label: str) -> Annotated | None:
    """The boxes of a split; None: no table among `files` has the columns. ValueError: cells that say no box."""
    tables = [file for file in files if file.suffix.lower() in SUFFIXES and {*SIDES} <= {*_columns(file)}]
    if not tables:
        return None
    chosen = choose(tables, root, split, split)
    rows = list[tuple[Path, dict]]()
    for file in chosen.files:
        rows += [(file, row) for row in _rows(file, label)]
    notes, names = list(chosen.notes), list(chosen.splits)
    if len(chosen.files) == len(tables):
        with suppress(ValueError):  # rows of several splits, whose images lie in as many folders
            notes += _unnamed(list(_by_image(rows, "")))
    there = {row[NAME] for _, row in rows} - {""}
    if there and len(names) < 2:  # the column counts where files are not divided by their names
        where = chosen.files[0] if len(chosen.files) == 1 else root
        wanted, names = in_split(split.lower(), there, where), sorted(there)
        if left := sum(row[NAME] == "" for _, row in rows):
            notes.append(f"{LEFT}: {left}")
        rows = [(file, row) for file, row in rows if row[NAME] in wanted]
    elif chosen.missing:
        raise NoSplitError(chosen.missing, chosen.splits)
    listed = ", ".join(file.name for file in chosen.files[:3])
    return Annotated(_by_image(rows, split), f"the table {listed}, a row a box", notes, names)


def _unnamed(paths: list[str]) -> list[str]:
    """What is said of images that lie among those of the table, which has no row of them."""
    named_there = {os.path.normpath(path) for path in paths}
    left = []
    for folder in sorted({Path(path).parent for path in named_there}):
        if folder.is_dir():
            files = (file for file in folder.iterdir() if not is_ignored(file.name))
            left += [file for file in files if is_of(file, IMAGES) and os.path.normpath(file) not in named_there]
    return [f"not read, as the table has no row of them: {len(left)} images ({named(sorted(left))})"] if left else []


def _columns(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        return pq.read_schema(file).names
    return table_files.read(file).column_names


def _by_image(rows: list[tuple[Path, dict]], split: str) -> dict[str, list[Box]]:
    """The boxes of each image by its path, of rows with the table of each."""
    listed: dict[Path, list[str]] = {}
    for file, row in rows:
        listed.setdefault(file, []).append(row["file"])
    folders = {file: found_below(names, file.parent, split) for file, names in listed.items()}
    images: dict[str, list[Box]] = {}
    for file, row in rows:
        boxes = images.setdefault(str(folders[file] / row["file"]), [])
        if row["box"] is not None:
            boxes.append(row["box"])
    return images


def _rows(file: Path, label: str) -> list[dict]:
    """File, split and box of each row. ValueError: no column of files or classes, or a cell that is no number."""
    table = pq.read_table(file) if file.suffix.lower() == ".parquet" else table_files.read(file)
    path = next((name for name in PATH_COLUMNS if name in table.column_names), None)
    for name, wanted in ((path, PATH_COLUMNS[0]), (label if label in table.column_names else None, label)):
        if name is None:
            raise ValueError(
                f"{file} has boxes and no column {wanted!r}; its columns are {', '.join(table.column_names)}"
            )
    columns = [table[name].to_pylist() for name in (path, label, *SIDES)]
    place = next((name for name in table.column_names if name.strip().lower() == NAME), "")
    splits = table[place].to_pylist() if place else [None] * table.num_rows
    rows = []
    for place, (name, kind, *sides, one) in enumerate(zip(*columns, splits, strict=True), 1):
        if not name:
            raise ValueError(f"row {place} of {file} names no file")
        box = _box(kind, sides, f"row {place} of {file}")
        rows.append({"file": str(name), NAME: str(one or "").strip().lower(), "box": box})
    return rows


def _box(kind: object, sides: list, where: str) -> Box | None:
    """A box; None: its cells are empty. ValueError: some are, or are no numbers."""
    if all(side is None for side in sides):
        return None
    left, top, right, bottom = map(number, sides)
    for name, value, side in zip(SIDES, (left, top, right, bottom), sides, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name} is {side!r}; it must be a number of pixels")
    if kind is None or not str(kind).strip():
        raise ValueError(f"{where} has a box and no class")
    return str(kind), left, top, right, bottom
