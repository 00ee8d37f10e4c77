"""The columns of a table of samples: which one holds the media, names of rows, values, class names."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v.evaluation.class_names import in_order, names_of

PATH_COLUMNS = ("file", "path", "file_name", "filename", "file_path", "audio_filepath")
STARTS, STOP, LENGTH = ("offset", "start"), "end", "duration"  # columns of a part of a recording, in seconds


def is_string(feature: Any) -> bool:
    """Whether a column of this type holds strings."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def media_column(dataset: datasets.Dataset, kind: str) -> str:
    """The column that holds the "image", "audio" or "text". ValueError: none does; lists the columns."""
    features = dataset.features
    feature_type = {"image": datasets.Image, "audio": datasets.Audio}.get(kind)
    for name, feature in features.items():
        if feature_type and isinstance(feature, feature_type):
            return name
    if kind in features:
        return kind
    strings = [name for name, feature in features.items() if is_string(feature)]
    if feature_type:
        structs = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
        candidates = structs + [name for name in PATH_COLUMNS if name in strings]
    else:
        candidates = strings if len(strings) == 1 else []
    if not candidates:
        raise ValueError(f"no column holds {kind}; the columns are {', '.join(features)} (name it {kind!r})")
    return candidates[0]


def identifiers(dataset: datasets.Dataset, path: Any, split: str, first: int = 0) -> list[str]:
    """A stable name per row: the path below `path` for files, else "<split>:<row>", counted from `first`."""
    if "file" not in dataset.column_names or not is_string(dataset.features["file"]):
        return [f"{split}:{first + row}" for row in range(len(dataset))]
    root = Path(path).expanduser().absolute() if isinstance(path, str | os.PathLike) else None
    if root is None or not root.is_dir():
        return list(dataset["file"])
    return [os.path.relpath(file, root) if Path(file).is_relative_to(root) else file for file in dataset["file"]]


def values(
    dataset: datasets.Dataset, name: str, rows: np.ndarray, ids: Sequence[str], *, empty: Any = None
) -> np.ndarray:
    """The column `name` of `rows`, whose names are `ids`; `empty` in place of missing values.

    ValueError: no such column, or rows without a value and no `empty`.
    """
    if name not in dataset.column_names:
        raise ValueError(f"the data has no column {name!r}; its columns are {', '.join(dataset.column_names)}")
    cells = list(dataset.select_columns([name]).select(rows)[name])
    missing = [sample for sample, cell in zip(ids, cells, strict=True) if cell is None]
    if missing and empty is None:
        raise ValueError(f"{len(missing)} of {len(cells)} samples have no {name!r}, the first is {missing[0]}")
    return np.asarray([empty if cell is None else cell for cell in cells])


def cells(dataset: datasets.Dataset, name: str, rows: np.ndarray) -> np.ndarray:
    """The column `name` of `rows`; as objects if some are None, or lists or structs. ValueError: no such column."""
    if name not in dataset.column_names:
        raise ValueError(f"the data has no column {name!r}; its columns are {', '.join(dataset.column_names)}")
    found = list(dataset.select_columns([name]).select(rows)[name])
    if not any(cell is None or isinstance(cell, list | dict) for cell in found):
        return np.asarray(found)
    array = np.empty(len(found), dtype=object)
    for place, cell in enumerate(found):
        array[place] = cell
    return array


def classes(dataset: datasets.Dataset, name: str) -> list[str] | None:
    """Class names of a column: in the order of its integer labels, or its strings in order; None if it knows none."""
    feature = dataset.features.get(name)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if is_string(feature):
        return in_order(names_of(dataset[name], None, name))
    return None


def segments(dataset: datasets.Dataset) -> np.ndarray | None:
    """Which part of its recording each row is, (rows, 2) seconds: start, and stop or NaN for the end of the recording.

    Columns "offset" or "start", and "end" or "duration", whose empty cells are 0 and the end. None: the table has no
    such columns, or its cells hold the sound itself. ValueError: a cell that is no time.
    """
    starts = [name for name in STARTS if name in dataset.column_names]
    if not starts or _holds_bytes(dataset, media_column(dataset, "audio")):
        return None
    if len(starts) > 1:
        raise ValueError(f"the data has columns {' and '.join(starts)}, and both say where a row begins: keep one")
    start = np.nan_to_num(_seconds(dataset, starts[0]))
    stop = np.full(len(dataset), np.nan)
    if STOP in dataset.column_names:
        stop = _seconds(dataset, STOP)
    elif LENGTH in dataset.column_names:
        stop = start + _seconds(dataset, LENGTH)
    reversed_rows = np.flatnonzero(stop < start)
    if len(reversed_rows):
        row = reversed_rows[0]
        raise ValueError(f"row {row + 1} of the data begins at {start[row]:g} s and ends before, at {stop[row]:g} s")
    return np.stack([start, stop], axis=1)


def _seconds(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """A column as seconds, (rows,), NaN where it is empty. ValueError: a cell that is none."""
    cells = list(dataset[name])
    seconds = np.array([number(cell) for cell in cells])
    for row in np.flatnonzero(~((seconds >= 0) & (seconds < np.inf))):
        if cells[row] is not None:
            raise ValueError(
                f"row {row + 1} of column {name!r} is {cells[row]!r}; it must be seconds, 0 or more, or empty"
            )
    return seconds


def number(cell: Any) -> float:
    """What a cell says as a number; NaN: it says none."""
    if cell is None or isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):  # Python reads 1_000
        return math.nan
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _holds_bytes(dataset: datasets.Dataset, name: str) -> bool:
    """Whether cells of a column are media, not paths to files."""
    if is_string(dataset.features[name]):
        return False
    column = dataset.data.column(name)
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        return True
    return pc.struct_field(column, "bytes").null_count < len(column)
