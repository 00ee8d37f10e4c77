"""Several data sets as one: cells of a column are compared by what is written, and a column that one lacks is empty."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v.modalities.common.shards import PLACE, is_place, type_of
from d2v.modalities.common.tables import NAMES, column_of, media_column, number, with_column, written

CELL = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # of media, as `datasets` stores it


def join(parts: list[datasets.Dataset], split: str, kind: str) -> datasets.Dataset:
    """One data set of the samples of `kind`, with the columns of all parts; class names are united.

    Of a text file there is one column, and then no others are kept. ValueError: no common column, or one that is of
    types that do not fit.
    """
    parts = [part.remove_columns(NAMES) if NAMES in part.column_names else part for part in parts]
    if kind != "text":
        parts = _with_one_media_column(parts, kind)
    everywhere = set.intersection(*(set(part.column_names) for part in parts))
    common = [name for name in parts[0].column_names if name in everywhere]  # in the order of the first
    if not common:
        listed = "; ".join(", ".join(part.column_names) for part in parts)
        raise ValueError(f"the parts of data.path share no column: {listed}")
    if any(part.column_names == ["text"] for part in parts):
        parts = [part.select_columns(common) for part in parts]
    names: dict[str, None] = {}  # each once, in the order of their coming
    for part in parts:
        names |= dict.fromkeys(part.column_names)
    for name in names:
        parts = _alike(parts, name)
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the parts of data.path (split {split!r}) do not fit together: {error}") from error


def _with_one_media_column(parts: list[datasets.Dataset], kind: str) -> list[datasets.Dataset]:
    """Parts whose media lie in one column: paths, bytes and places in shards as cells that hold one of these."""
    names = [media_column(part, kind) for part in parts]
    if len({(name, str(part.features[name])) for name, part in zip(names, parts, strict=True)}) == 1:
        return parts
    columns = [column_of(part, name) for name, part in zip(names, parts, strict=True)]
    feature = CELL | (PLACE if any(is_place(column.type) for column in columns) else {})
    made = []
    for name, part, column in zip(names, parts, columns, strict=True):
        cells = pa.chunked_array([_cells(chunk, name, feature) for chunk in column.chunks], type_of(feature))
        part = with_column(part, kind, cells, feature)
        made.append(part if name in (kind, "file") else part.remove_columns(name))
    return made


def _cells(chunk: pa.Array, name: str, feature: dict[str, Any]) -> pa.Array:
    """Media as cells of bytes, a path, or a place. ValueError: they are none of these."""
    fields = [*type_of(feature)]
    if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
        children = [chunk.cast(pa.string()) if one.name == "path" else pa.nulls(len(chunk), one.type) for one in fields]
        return pa.StructArray.from_arrays(children, fields=fields)
    found = {field.name for field in chunk.type} if pa.types.is_struct(chunk.type) else set()
    if not is_place(chunk.type) and {"bytes", "path"} - found:
        raise ValueError(f"one part of data.path holds {chunk.type} in column {name!r}, another paths or files")
    children = []
    for one in fields:
        held = one.name in found
        children.append(pc.struct_field(chunk, one.name).cast(one.type) if held else pa.nulls(len(chunk), one.type))
    return pa.StructArray.from_arrays(children, fields=fields)


def _alike(parts: list[datasets.Dataset], name: str) -> list[datasets.Dataset]:
    """The parts with a column of one type, which is empty where a part has none.

    ValueError: class names in one part and numbers that are none of them in another.
    """
    kinds = [part.features[name] for part in parts if name in part.column_names]
    if all(kind == kinds[0] for kind in kinds):
        return [_with_empty(part, name, kinds[0]) for part in parts]
    if all(isinstance(kind, datasets.ClassLabel) for kind in kinds):
        return _with_united_classes(parts, name)
    if not all(isinstance(kind, datasets.Value | datasets.ClassLabel) for kind in kinds):
        return [_with_empty(part, name, kinds[0]) for part in parts]  # `datasets` says what does not fit
    dtypes = {kind.dtype for kind in kinds if isinstance(kind, datasets.Value) and kind.dtype != "null"}
    named = [kind for kind in kinds if isinstance(kind, datasets.ClassLabel)]
    if not named and all(dtype.startswith(("int", "uint", "float")) for dtype in dtypes):
        whole = not any(dtype.startswith("float") for dtype in dtypes)
        united = datasets.Value("int64" if whole else "float64")
        return [_with_empty(part, name, united).cast_column(name, united) for part in parts]
    coded = any(dtype.startswith(("int", "uint")) for dtype in dtypes)
    if coded and any(map(_has_words, named)):
        raise ValueError(
            f"column {name!r} holds class names ({', '.join(named[0].names[:5])}) in one part of data.path and numbers "
            "in another: write the names in both"
        )
    return [_as_written(part, name) for part in parts]


def _has_words(kind: datasets.ClassLabel) -> bool:
    """Whether the name of a class is no number."""
    return any(np.isnan(number(name)) for name in kind.names)


def _with_empty(part: datasets.Dataset, name: str, feature: Any) -> datasets.Dataset:
    if name in part.column_names:
        return part
    kind = datasets.Features({name: feature}).arrow_schema.field(name).type
    return with_column(part, name, pa.nulls(len(part), kind), feature)


def _as_written(part: datasets.Dataset, name: str) -> datasets.Dataset:
    """The part with a column as strings."""
    feature = part.features.get(name)
    cells: list[Any] = list(part[name]) if name in part.column_names else [None] * len(part)
    if isinstance(feature, datasets.ClassLabel):
        cells = [feature.names[code] if code is not None and code >= 0 else None for code in cells]  # -1: no label
    texts = [None if cell is None else written(cell) for cell in cells]
    return with_column(part, name, pa.array(texts, pa.string()))


def _with_united_classes(parts: list[datasets.Dataset], name: str) -> list[datasets.Dataset]:
    """The parts with a column of class labels numbered by the names of all of them."""
    names: set[str] = set()
    for part in parts:
        if name in part.column_names:
            names.update(part.features[name].names)
    united = datasets.ClassLabel(names=sorted(names))
    renumbered = []
    for part in parts:
        part = _as_written(part, name)
        codes = [None if cell is None else united.str2int(cell) for cell in part[name]]
        renumbered.append(with_column(part, name, pa.array(codes, pa.int64()), united))
    return renumbered
