"""The columns of a table of samples: which one holds the media, names of rows, values, class names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

PATH_COLUMNS = ("file", "path", "file_name", "filename", "file_path")


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


def classes(dataset: datasets.Dataset, name: str) -> list[str] | None:
    """Class names of a column: in the order of its integer labels, or its strings, sorted; None if it knows none."""
    feature = dataset.features.get(name)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if is_string(feature):
        return sorted({cell for cell in dataset[name] if cell is not None})
    return None
