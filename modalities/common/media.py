"""Files of images or sound as a data set: their paths, and their labels by sub-folder or from metadata beside them."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from d2v.modalities.common import table_files
from d2v.modalities.common.folders import below, holds, is_ignored, is_text
from d2v.modalities.common.kinds import named
from d2v.modalities.common.noted import with_notes
from d2v.split_names import is_split, same_split

METADATA = ("metadata.csv", "metadata.jsonl")


def media_files(files: list[Path], root: Path, split: str, extensions: Sequence[str]) -> datasets.Dataset:
    """A row for each file below `root`: "file", the columns of metadata.csv or metadata.jsonl, and, if these have none,
    "label".

    The label is the first sub-folder, if all files, which are of the kind `extensions`, lie in sub-folders; beside
    metadata, if they lie in several. ValueError: metadata that do not fit.
    """
    metadata = _metadata(files, root)
    if metadata is None and same_split(root.name, split):
        metadata = _metadata(files, root.parent)
    opened = datasets.Dataset(pa.table({"file": [str(file) for file in files]}) if metadata is None else metadata)
    if "label" in opened.column_names:
        return opened
    labels, beside = _by_folder(files, root)
    if metadata is not None and (beside or len({*labels.values()}) < 2):
        return opened
    if beside:
        if len(beside) > len(files) / 2:
            return opened
        why = f"{len(beside)} of {len(files)} files lie in none: {named(beside)}"
        return with_notes(opened, [f"no classes by folder, as {why}"], [])
    classes = {*labels.values()}
    if same_split(root.name, split):  # another split may hold classes that this one lacks; the numbers must agree
        for other in root.parent.iterdir():
            if other.is_dir() and is_split(other.name):
                classes |= _classes(other, extensions)
    feature = datasets.ClassLabel(names=sorted(classes))
    cells = [-1 if file is None else feature.str2int(labels[file]) for file in opened["file"]]
    return opened.add_column("label", cells, feature=feature)


def _by_folder(files: list[Path], root: Path) -> tuple[dict[str | None, str], list[Path]]:
    """The first sub-folder of each file that lies in one, and the others."""
    labels, beside = dict[str | None, str](), list[Path]()
    for file in files:
        first, *others = below(file, root)
        if others:
            labels[str(file)] = first
        else:
            beside.append(file)
    return labels, beside


def _classes(folder: Path, extensions: Sequence[str]) -> set[str]:
    """Names of the folders in a folder that have files of a kind."""
    names = set()
    for inner in folder.iterdir():
        if inner.is_dir() and not is_ignored(inner.name) and is_text(inner.name) and holds(inner, extensions):
            names.add(inner.name)
    return names


def _metadata(files: list[Path], root: Path) -> pa.Table | None:
    """The rows of metadata.csv or metadata.jsonl in the order of files, "file" first; None where there is none.

    A file has as many rows as it has there, or one that is empty. ValueError: no column file_name, or it names missing
    files.
    """
    path = next((root / name for name in METADATA if (root / name).is_file()), None)
    if path is None:
        return None
    table = table_files.read(path)
    if "file_name" not in table.column_names:
        raise ValueError(f"{path} has no column 'file_name'; its columns are {', '.join(table.column_names) or 'none'}")
    rows: dict[str | None, list[int | None]] = {}  # of each file, those of the table
    for row, name in enumerate(table["file_name"].to_pylist()):
        rows.setdefault(None if name is None else os.path.normpath(root / str(name)), []).append(row)
    missing = [name for name in rows if name is not None and not Path(name).is_file()]
    if missing:
        raise ValueError(f"{path} names {len(missing)} files that do not exist, the first is {missing[0]}")
    named: list[str | None] = []
    places: list[int | None] = []  # in the table
    for file in [*map(str, files), None]:
        found = rows.get(os.path.normpath(file) if file else None, [None] if file else [])
        named += [file] * len(found)
        places += found
    columns = {"file": pa.array(named, pa.string())}
    for name in table.column_names:
        if name not in ("file_name", "file"):
            columns[name] = table[name].take(pa.array(places, pa.int64()))
    return pa.table(columns)
