"""The columns of a table of samples: which one holds the media, names of rows, values, class names."""

import glob
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v.evaluation.class_names import in_order, names_of
from d2v.modalities.common.sampling import Names, Numbered

PATH_COLUMNS = ("file", "path", "file_name", "filename", "file_path", "filepath", "audio_filepath")
KNOWN = {  # names of columns by which the first line of a table is known for one, of what is looked for
    "image": (*PATH_COLUMNS, "image"),
    "audio": (*PATH_COLUMNS, "audio"),
    "text": (
        *("text", "texts", "sentence", "sentence1", "sentences", "content", "document", "paragraph", "review", "body"),
        *("comment", "message", "tweet", "post", "description", "title", "headline", "caption", "summary", "line"),
        *("utterance", "transcript", "transcription", "question", "query", "premise", "hypothesis", "source", "string"),
        *("label", "labels", "class", "category", "topic", "target", "score", "stars", "rating", "sentiment", "intent"),
        *("id", "idx", "index", "Unnamed: 0", "split", "lang", "language", "author", "speaker", *PATH_COLUMNS),
    ),
}
# Columns of a part of a recording, in seconds, whatever their capitals; those that other programs write
# (Audacity's and Raven's exports, DCASE's lists) count where they hold numbers.
STARTS, STOPS, LENGTH = ("offset", "start"), ("end",), "duration"
OTHER_STARTS, OTHER_STOPS = (
    ("onset", "start_time", "begin_time", "begin time (s)"),
    ("end_time", "stop", "end time (s)"),
)
TIMES = (*STARTS, *OTHER_STARTS, *STOPS, *OTHER_STOPS, LENGTH)
NAMES, MOVED = "d2v_name", "d2v_moved"  # columns of our own: unique names of rows; one on its way to another's place
NUMBER = r"^\s*([-+]?[\d.,]+(e[-+]?\d+)?|true|false)?\s*$"


def is_string(feature: Any) -> bool:
    """Whether a column of this type holds strings."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def media_column(dataset: datasets.Dataset, kind: str, label: str = "") -> str:
    """The column that holds the "image", "audio" or "text", which is not that of the label.

    ValueError: none does; lists the columns.
    """
    features = dataset.features
    feature_type = {"image": datasets.Image, "audio": datasets.Audio}.get(kind)
    for name, feature in features.items():
        if feature_type and isinstance(feature, feature_type):
            return name
    if kind in features:
        return kind
    strings = [name for name, feature in features.items() if is_string(feature) and name not in (NAMES, label)]
    if feature_type:
        inner = ("bytes", "array") if kind == "audio" else ("bytes",)
        structs = [name for name, feature in features.items() if isinstance(feature, dict) and {*inner} & {*feature}]
        candidates = structs + [name for name in PATH_COLUMNS if name in strings]
    else:
        worded = [name for name in strings if _has_words(column_of(dataset, name))]
        candidates = worded if len(worded) == 1 else []
    if not candidates:
        raise ValueError(
            f"no column holds {kind}; the columns are {', '.join(column_names(dataset))} (name it {kind!r}"
            + (", or say data.text=COLUMN)" if kind == "text" else ")")
        )
    return candidates[0]


def media_kinds(dataset: datasets.Dataset, kind: str) -> list[str]:
    """Of what rows may name files: `kind`, and others that have a column of their name; of "text" there are none."""
    if kind == "text":
        return []
    return [kind, *(other for other in ("image", "audio") if other != kind and other in dataset.features)]


def _has_words(column: pa.ChunkedArray) -> bool:
    """Whether a cell of strings holds more than a number."""
    for chunk in column.chunks:
        if not pc.all(pc.match_substring_regex(chunk, NUMBER, ignore_case=True)).as_py():  # null: all are missing
            return pc.any(pc.invert(pc.match_substring_regex(chunk, NUMBER, ignore_case=True))).as_py() or False
    return False


def column_names(dataset: datasets.Dataset) -> list[str]:
    """The columns that the data has, without what `name_rows` adds."""
    return [name for name in dataset.column_names if name != NAMES]


def file_paths(dataset: datasets.Dataset, name: str) -> list[str | None] | None:
    """Where the files of a column of media lie, None for a cell without one; None if all cells hold the media."""
    if is_string(dataset.features[name]):
        return cells_of(dataset, name)
    column = column_of(dataset, name)
    held = _held(column)
    if held is None or pc.all(held).as_py():
        return None
    paths = pc.struct_field(column, "path").to_pylist()
    return [None if is_held else path for path, is_held in zip(paths, held.to_pylist(), strict=True)]


def same_files(media: datasets.Dataset, rows: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray | None:
    """Numbers of `rows` (n,), equal where their one column names the same file, and `parts` the same part of it.

    None: cells hold the media themselves, and nobody has compared them.
    """
    (name,) = media.column_names
    paths = file_paths(media, name)
    if paths is None:
        return None
    known: dict[Any, int] = {}
    numbers = []
    for row in rows.tolist():
        part = () if parts is None else tuple(parts[row].tolist())
        numbers.append(known.setdefault((paths[row] or row, *part), len(known)))
    return np.array(numbers, dtype=np.int64)


def holds_media(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """(rows,) bool, which cells of a column of media hold these, and name no file."""
    held = _held(column_of(dataset, name))
    return np.ones(len(dataset), dtype=bool) if held is None else np.asarray(held)


def _held(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Which cells hold the media itself, or say where in a shard they lie; None: no cell names a file."""
    fields = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
    if "path" not in fields:
        return None
    held = pa.chunked_array([pa.array(np.zeros(len(column), dtype=bool))])
    for name in fields & {"bytes", "array", "offset"}:
        held = pc.or_(held, pc.is_valid(pc.struct_field(column, name)))
    return held


def cells_of(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A column; at once, as a million rows one by one take ten times as long."""
    return column_of(dataset, name).to_pylist()


def column_of(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column as it is stored."""
    return dataset.select_columns([name]).with_format("arrow")[:].column(name)


def with_paths(dataset: datasets.Dataset, name: str, paths: list[str | None]) -> datasets.Dataset:
    """The data set with other paths in a column of media, None where a cell has none."""
    column, feature = column_of(dataset, name), dataset.features[name]
    if not is_string(feature):
        chunks, start = [], 0
        for chunk in column.chunks:
            some = pa.array(paths[start : start + len(chunk)], pa.string())
            start += len(chunk)
            children = []
            for field, child in zip(chunk.type, chunk.flatten(), strict=True):
                children.append(pc.coalesce(some.cast(field.type), child) if field.name == "path" else child)
            chunks.append(pa.StructArray.from_arrays(children, fields=list(chunk.type)))
        column = pa.chunked_array(chunks, column.type)
    else:
        column = pa.array(paths, column.type)
    return with_column(dataset, name, column, feature)


def with_folders(dataset: datasets.Dataset, kind: str, folders: Sequence[str | os.PathLike]) -> datasets.Dataset:
    """The data set with the paths of media of `kind` in a folder for each row. ValueError: no column of that kind."""
    name = media_column(dataset, kind)
    paths = file_paths(dataset, name)
    if paths is None:
        return dataset
    absolute = [path and f"{folder}/{path}" for folder, path in zip(folders, paths, strict=True)]
    kept = [path if path and path.startswith("/") else new for path, new in zip(paths, absolute, strict=True)]
    return with_paths(dataset, name, kept)


def with_column(dataset: datasets.Dataset, name: str, column: Any, feature: Any = None) -> datasets.Dataset:
    """The data set with a column in place of the one of that name, if there is one."""
    if name not in dataset.column_names:
        return dataset.add_column(name, column, feature=feature)
    added = dataset.add_column(MOVED, column, feature=feature)  # before the other leaves: it may be the only one
    return added.remove_columns(name).rename_column(MOVED, name).select_columns(dataset.column_names)


def name_rows(dataset: datasets.Dataset, path: Any, split: str, kind: str) -> datasets.Dataset:
    """The data set of the samples of `kind`, with a column of unique names of its rows where they lie in files.

    ValueError: no column of that kind, or parts of recordings that are no times.
    """
    dataset = dataset.remove_columns(NAMES) if NAMES in dataset.column_names else dataset
    media = None if kind == "text" else media_column(dataset, kind)
    parts = segments(dataset) if kind == "audio" else None
    paths = None if media is None else file_paths(dataset, media)
    if paths is None and "file" in dataset.column_names and is_string(dataset.features["file"]):
        media, paths = "file", cells_of(dataset, "file")
    if paths is None and parts is None:
        return dataset
    paths = [None] * len(dataset) if paths is None else paths
    if media == "file" and parts is None and None not in paths and len({*paths}) == len(paths):
        return dataset  # the paths themselves are names
    names = [relative or f"{split}:{row}" for row, relative in enumerate(_relative(paths, path))]
    if parts is not None:
        names = [name + _of_part(*part) for name, part in zip(names, parts.tolist(), strict=True)]
    return dataset.add_column(NAMES, pa.array(_unique(names), pa.string()))


def _of_part(start: float, stop: float) -> str:
    """What names a part of a recording; nothing for all of it."""
    if start == 0 and math.isnan(stop):
        return ""
    return f"[{round(start, 6)}-{'' if math.isnan(stop) else round(stop, 6)}]"


def _unique(names: list[str]) -> list[str]:
    """The names, with #2, #3, ... after those that were there before."""
    taken, counts, unique = {*names}, Counter[str](), []
    for name in names:
        counts[name] += 1
        new = name
        while counts[name] > 1 and new in taken:
            new = f"{name}#{counts[name]}"
            counts[name] += new in taken
        taken.add(new)
        unique.append(new)
    return unique


def _relative(paths: Sequence[str | None], path: Any) -> list[str | None]:
    """Absolute paths as what they are below data.path, where they lie there; others stay."""
    root = _root(path)
    names = []
    for place in paths:
        name = os.path.normpath(place) if place and place.startswith("/") else place
        names.append(name[len(root) :] if root and name and name.startswith(root) else name)
    return names


def _root(path: Any) -> str:
    """The folder of data.path, ending in a slash: its own, that of a file, or of a pattern; "": it has none."""
    if not isinstance(path, str | os.PathLike):
        return ""
    place = Path(os.path.normpath(Path(path).expanduser().absolute()))
    while glob.has_magic(str(place)) and not place.exists():
        place = place.parent
    if place.is_file():
        place = place.parent
    return f"{place}/".replace("//", "/") if place.is_dir() else ""


def identifiers(dataset: datasets.Dataset, path: Any, split: str, first: int = 0) -> Sequence[str]:
    """A stable name per row: the path below `path` for files, else "<split>:<row>", counted from `first`."""
    if NAMES in dataset.column_names:
        return Names(dataset.select_columns([NAMES]), NAMES)
    if "file" not in dataset.column_names or not is_string(dataset.features["file"]):
        return Numbered(split, range(first, first + len(dataset)))
    return [name or f"{split}:{first + row}" for row, name in enumerate(_relative(cells_of(dataset, "file"), path))]


def values(
    dataset: datasets.Dataset, name: str, rows: np.ndarray, ids: Sequence[str], *, empty: Any = None
) -> np.ndarray:
    """The column `name` of `rows`, whose names are `ids`; `empty` in place of missing values.

    ValueError: no such column, or rows without a value and no `empty`.
    """
    found = cells(dataset, name, rows).tolist()
    missing = [sample for sample, cell in zip(ids, found, strict=True) if cell is None]
    if missing and empty is None:
        raise ValueError(f"{len(missing)} of {len(found)} samples have no {name!r}, the first is {missing[0]}")
    return np.asarray([empty if cell is None else cell for cell in found])


def cells(dataset: datasets.Dataset, name: str, rows: np.ndarray) -> np.ndarray:
    """The column `name` of `rows`; as objects if some are None, or lists or structs. ValueError: no such column."""
    if name not in dataset.column_names:
        raise ValueError(f"the data has no column {name!r}; its columns are {', '.join(column_names(dataset))}")
    every = len(rows) == len(dataset) and bool((rows == np.arange(len(rows))).all())  # `select` asks that row by row
    column = column_of(dataset if every else dataset.select(rows), name)
    if pa.types.is_integer(column.type) and not column.null_count:
        return column.to_numpy().astype(np.int64)
    found = column.to_pylist()
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
        cells = column_of(dataset, name).unique().drop_null().to_pylist()
        text = [cell for cell in cells if "\ufffd" not in cell]  # who asks for classes hears of others, pretraining not
        return in_order(names_of(text, None, name))
    return None


def written(value: Any) -> str:
    """What is written for a cell, numbers and true and false as JSON has them."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="replace").decode()  # half a character cannot be stored


def segments(dataset: datasets.Dataset) -> np.ndarray | None:
    """Which part of its recording each row is, (rows, 2) seconds: start, and stop or NaN for the end of the recording.

    Columns "offset" or "start", and "end" or "duration", whose empty cells are 0 and the end, or other usual names;
    beside "onset" an "offset" is the end. None: the table has no such columns, or its cells hold the sound itself.
    ValueError: a cell that is no time.
    """
    starts, stops, lengths = _times(dataset)
    if not starts or _holds_bytes(dataset, media_column(dataset, "audio")):
        return None
    for names, what in ((starts, "begins"), (stops, "ends")):
        if len(names) > 1:
            raise ValueError(f"the data has columns {' and '.join(names)}, and both say where a row {what}: keep one")
    start = np.nan_to_num(_seconds(dataset, starts[0]))
    stop = np.full(len(dataset), np.nan)
    if stops:
        stop = _seconds(dataset, stops[0])
    elif lengths:
        stop = start + _seconds(dataset, lengths[0])
    return np.stack([start, stop], axis=1)


def _times(dataset: datasets.Dataset) -> tuple[list[str], list[str], list[str]]:
    """Columns that say where a row begins, where it ends, and how long it is."""
    columns = {name.strip().lower(): name for name in dataset.column_names}
    others = (*OTHER_STARTS, *OTHER_STOPS)
    known = {name for name in columns if name not in others or _is_numeric(dataset, columns[name])}
    starts = [name for name in (*STARTS, *OTHER_STARTS) if name in known]
    stops = [name for name in (*STOPS, *OTHER_STOPS) if name in known]
    if {"onset", "offset"} <= known:  # DCASE's: the second is where the sound ends
        starts.remove("offset")
        stops.append("offset")
    lengths = [columns[LENGTH]] if LENGTH in columns else []
    return [columns[name] for name in starts], [columns[name] for name in stops], lengths


def _is_numeric(dataset: datasets.Dataset, name: str) -> bool:
    """Whether every cell that is not empty is a number."""
    return all(cell is None or np.isfinite(number(cell)) for cell in cells_of(dataset, name))


def repeated(dataset: datasets.Dataset) -> list[str]:
    """What is said of a table whose rows name few recordings, all of which are read whole."""
    name = media_column(dataset, "audio")
    if len(dataset) < 2 or not is_string(dataset.features[name]):
        return []
    files = len(dataset.unique(name))
    if 2 * files > len(dataset):
        return []
    return [
        f"{len(dataset)} rows name {files} recordings, each read whole: for parts give columns offset or start, and "
        "end or duration, in seconds"
    ]


def _seconds(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """A column as seconds, (rows,), NaN where it is empty. ValueError: a cell that is none."""
    cells = cells_of(dataset, name)
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
    held = _held(column_of(dataset, name))
    return held is None or pc.any(held).as_py()
