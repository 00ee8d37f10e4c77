"""The classes of samples by name, which is what two splits have in common: numbers of classes may differ between files.

n samples.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from d2v.protocols import Samples


def class_names(samples: Samples, column: str, known: Collection[str] | None = None) -> list[str | None]:
    """The name of each sample's class, n of them; None: it has none, since its cell is null, empty, NaN or -1.

    -1 is a class where `known`, the classes of the split that is trained on, hold it; where they are not known yet, if
    classes are not numbered from 0. ValueError: no such column, or cells that are no classes.
    """
    return names_of(samples.column(column), samples.classes, column, known)


def names_of(
    cells: Iterable[Any], classes: Sequence[str] | None, column: str, known: Collection[str] | None = None
) -> list[str | None]:
    """The same of the cells of a column, whose classes have these names by number."""
    places = None
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iu":  # of a million numbers few are different
        cells, places = np.unique(cells, return_inverse=True)
    names = [_name(cell, classes, column) for cell in cells]
    minus_is_none = "0" in names if known is None else "-1" not in known
    found = [None if name == "-1" and minus_is_none else name for name in names]
    return found if places is None else [found[place] for place in places.tolist()]


def _name(cell: Any, classes: Sequence[str] | None, column: str) -> str | None:
    """ValueError: the cell holds no class."""
    if cell is None or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        if "\ufffd" in cell:  # what a reader puts in place of bytes that are none
            raise ValueError(f"{column!r} holds {str(cell)!r}: not UTF-8; save the table as UTF-8")
        return str(cell) if cell.strip() else None
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell)).lower()  # as in a table of text
    if isinstance(cell, float | np.floating) and cell == round(cell) and math.isfinite(cell):
        cell = int(cell)
    if isinstance(cell, int | np.integer):
        if classes is None or cell >= len(classes) or cell < -1:
            return str(int(cell))
        return classes[int(cell)] if cell >= 0 else None
    if isinstance(cell, float | np.floating):
        raise ValueError(f"{column!r} holds fractions such as {cell}")
    kind = {"list": "lists", "ndarray": "lists", "dict": "structs"}.get(type(cell).__name__, type(cell).__name__)
    raise ValueError(f"{column!r} holds {kind} such as {str(cell)[:60]}; a class is a string or an integer")


def in_order(names: Iterable[str | None], classes: Sequence[str] | None = None) -> list[str]:
    """Different names, in the order of `classes` if these hold all, else sorted: numbers by size."""
    different = {name for name in names if name is not None}
    if classes and different <= set(classes):
        return [name for name in classes if name in different]
    try:
        return sorted(different, key=lambda name: (float(name), name))
    except ValueError:  # one is no number
        return sorted(different)


def numbered(names: Sequence[str | None], known: Sequence[str]) -> np.ndarray:
    """(n,) places among the known names; -1 for none. KeyError: an unknown name."""
    code: dict[str | None, int] = {name: number for number, name in enumerate(known)}
    code[None] = -1
    return np.array([code[name] for name in names], dtype=np.int64)


def complete(samples: Samples, column: str) -> np.ndarray:
    """(n,) values of a column that no sample lacks. ValueError: there is no such column, or one does."""
    values = samples.column(column)
    missing = [place for place, value in enumerate(values) if value is None]
    if missing:
        first = samples.ids[missing[0]]
        raise ValueError(f"{len(missing)} of {len(values)} samples have no {column!r}, the first is {first}")
    return values


def left_out(names: Sequence[Any], ids: Sequence[str], setting: str, where: str) -> list[str]:
    """What is said of samples that have None for a name: nothing if none has. ValueError: all have."""
    without = [name for name, value in zip(ids, names, strict=True) if value is None]
    if len(without) == len(names):
        raise ValueError(f"{setting}: none of the {len(names)} samples of {where} has a label (empty, null or -1)")
    few = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    return [f"{setting}: {len(without)} of {len(names)} samples of {where} have none and are left out: {few}"] * bool(
        without
    )
