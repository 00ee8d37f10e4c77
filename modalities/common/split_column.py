"""A column "split" of tables and metadata, which says of each row which split it is of."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v.modalities.common.noted import notes, with_notes
from d2v.modalities.common.splits import Chosen, by_family, meant
from d2v.modalities.common.tables import column_of, is_string
from d2v.protocols import NoSplitError
from d2v.split_names import is_split

NAME = "split"


def rows_of(opened: datasets.Dataset, chosen: Chosen, split: str, asked: str) -> datasets.Dataset:
    """The rows of a split, a part of data.split, which is `asked`, of what was opened from the files that were chosen.

    Of files that are not divided themselves, and whose column names more than one split. ValueError: there is no such
    split, or more than one that may be meant.
    """
    names = _names(opened)
    if not names:
        if chosen.missing:
            raise NoSplitError(chosen.missing)
        return opened
    if chosen.splits:
        careful = f"CAREFUL: the files are splits, and their column {NAME!r}, with {', '.join(names)}, is not read"
        return with_notes(opened, [*notes(opened), careful], [])
    wanted = meant(names, split, asked, chosen.root)
    column = column_of(opened, NAME)
    rows = np.flatnonzero(pc.is_in(column, value_set=pa.array(wanted, column.type)).to_numpy())
    said = f"split {split!r} is {len(rows)} of {len(opened)} rows, by the column {NAME!r}"
    if column.null_count:
        said += f"; rows that no split takes: {column.null_count}"
    return with_notes(opened.select(rows), [*notes(opened), said], names)


def _names(opened: datasets.Dataset) -> list[str]:
    """The splits that rows are said to be of, train first; []: not of several, or that is no column of splits."""
    if NAME not in opened.column_names or not is_string(opened.features[NAME]):
        return []
    names = [name for name in pc.unique(column_of(opened, NAME)).to_pylist() if name]
    return by_family(names) if len(names) > 1 and all(map(is_split, names)) else []
