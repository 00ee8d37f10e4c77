"""A column "split" of tables and metadata, which says of each row which split it is of."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v.modalities.common.noted import notes, with_notes
from d2v.modalities.common.splits import Chosen, by_family, meant
from d2v.modalities.common.tables import column_of
from d2v.protocols import NoSplitError
from d2v.split_names import family_of, is_split, means

NAME = "split"
LEFT = "rows that no split takes"
MOST = 20  # values of a column that may mean splits


def rows_of(opened: datasets.Dataset, chosen: Chosen, split: str, asked: str) -> datasets.Dataset:
    """The rows of a split, a part of data.split, which is `asked`, of what was opened of the chosen files.

    The column counts where files are not divided by their names. ValueError: there is no such split, or more than one
    that may be meant.
    """
    column, names = named(opened)
    if column is None:
        if chosen.missing:
            raise NoSplitError(chosen.missing, chosen.splits)
        return _not_understood(opened)
    if len(chosen.splits) > 1:
        careful = (
            f"CAREFUL: the files are splits, and their column {_place(opened)!r}, with {', '.join(names)}, is not read"
        )
        return with_notes(opened, [*notes(opened), careful], []) if len(names) > 1 else opened
    where = chosen.files[0] if len(chosen.files) == 1 else chosen.root
    wanted = _wanted(names, split, asked, where)
    rows = np.flatnonzero(pc.is_in(column, value_set=pa.array(wanted)).to_numpy())
    if len(rows) == len(opened):
        return opened
    said = f"split {split!r} of {where} is {len(rows)} of {len(opened)} rows, by the column {_place(opened)!r}"
    if left := pc.sum(pc.equal(column, "")).as_py():
        said += f"; {LEFT}: {left}"
    return with_notes(opened.select(rows), [*notes(opened), said], names)


def _place(opened: datasets.Dataset) -> str:
    """How the column is written: in any letters."""
    return next((name for name in opened.column_names if name.strip().lower() == NAME), NAME)


def _not_understood(opened: datasets.Dataset) -> datasets.Dataset:
    """With a line on a column of several values of which none is the name of a split, as 0 and 1."""
    place = _place(opened)
    feature = opened.features.get(place)
    if not isinstance(feature, datasets.Value):
        return opened
    values = pc.unique(column_of(opened, place)).drop_null().to_pylist()
    if not 1 < len(values) <= MOST:
        return opened
    listed = ", ".join(map(str, values[:5]))
    said = f"CAREFUL: the column {place!r}, with {listed}, names no split (train, validation, test) and is not read"
    return with_notes(opened, [*notes(opened), said], [])


def unread(opened: datasets.Dataset) -> list[str]:
    """A line on a column of several splits, where nothing reads it."""
    _, names = named(opened)
    return [f"CAREFUL: the column {_place(opened)!r}, with {', '.join(names)}, is not read"] if len(names) > 1 else []


def named(opened: datasets.Dataset) -> tuple[pa.ChunkedArray | None, list[str]]:
    """(n,) the split of each row, in small letters, "" where none is named; and all of them, train first.

    None, []: there is no such column, or none of its cells is the name of a split.
    """
    place = _place(opened)
    feature = opened.features.get(place)
    if isinstance(feature, datasets.ClassLabel):
        codes = column_of(opened, place)
        known = pc.if_else(pc.greater_equal(codes, 0), codes, pa.scalar(None, codes.type))  # -1: no label
        column = pc.take(pa.array(feature.names), known)
    elif isinstance(feature, datasets.Value) and "string" in feature.dtype:
        column = column_of(opened, place).cast(pa.string())
    else:
        return None, []
    column = pc.fill_null(pc.utf8_lower(pc.utf8_trim_whitespace(column)), "")
    names = [name for name in pc.unique(column).to_pylist() if name]
    if not any(is_split(name) or family_of(name) for name in names):
        return None, []
    return column, by_family(names)


def _wanted(names: Sequence[str], split: str, asked: str, where: Path) -> list[str]:
    """The names that a split means: its own, those that begin so (train-clean-100), or another name of the same."""
    begin = [name for name in names if not is_split(name) and means(split, name, names)]
    return begin if begin and split.lower() not in names else meant(names, split, asked, where)
