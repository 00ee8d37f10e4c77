"""Files of images or sound as a data set: their paths, and their labels by sub-folder or from metadata beside them."""

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import datasets

from d2v.modalities.common.folders import below, holds, is_ignored, is_text
from d2v.modalities.common.splits import is_split, same_split


def media_files(files: list[Path], root: Path, split: str, extensions: Sequence[str]) -> datasets.Dataset:
    """A row for each file below `root`: "file", and the columns of metadata.csv or metadata.jsonl, or "label".

    The label is the first sub-folder, if all files, which are of the kind `extensions`, lie in sub-folders.
    ValueError: metadata that do not fit.
    """
    columns: dict[str, list] = {"file": [str(file) for file in files]}
    metadata = _metadata(files, root) or (_metadata(files, root.parent) if same_split(root.name, split) else None)
    if metadata:
        return datasets.Dataset.from_dict(columns | metadata)
    parts = [below(file, root) for file in files]
    if any(len(part) < 2 for part in parts):
        return datasets.Dataset.from_dict(columns)
    label = [part[0] for part in parts]
    classes = set(label)
    if same_split(root.name, split):  # another split may hold classes that this one lacks; the numbers must agree
        for other in root.parent.iterdir():
            if other.is_dir() and is_split(other.name):
                classes |= _classes(other, extensions)
    feature = datasets.ClassLabel(names=sorted(classes))
    features = datasets.Features({"file": datasets.Value("string"), "label": feature})
    return datasets.Dataset.from_dict({**columns, "label": feature.str2int(label)}, features=features)


def _classes(folder: Path, extensions: Sequence[str]) -> set[str]:
    """Names of the folders in a folder that have files of a kind."""
    names = set()
    for inner in folder.iterdir():
        if inner.is_dir() and not is_ignored(inner.name) and is_text(inner.name) and holds(inner, extensions):
            names.add(inner.name)
    return names


def _metadata(files: list[Path], root: Path) -> dict[str, list] | None:
    """Columns of metadata.csv or metadata.jsonl in the order of files; None where there is none.

    ValueError: no column file_name, or it names missing files.
    """
    path = next((root / name for name in ("metadata.csv", "metadata.jsonl") if (root / name).is_file()), None)
    if path is None:
        return None
    rows = _rows(path)
    names: list[str] = []  # of columns, in the order in which they appear
    for row in rows:
        names += [name for name in row if name not in names]
    if "file_name" not in names:
        raise ValueError(f"{path} has no column 'file_name'; its columns are {', '.join(map(str, names)) or 'none'}")
    by_file = {os.path.normpath(root / row["file_name"]): row for row in rows}
    missing = [name for name in by_file if not Path(name).is_file()]
    if missing:
        raise ValueError(f"{path} names {len(missing)} files that do not exist, the first is {missing[0]}")
    matched = [by_file.get(os.path.normpath(file), {}) for file in files]
    columns = {}
    for name in names:
        if name not in ("file_name", "file"):
            values = [row.get(name) for row in matched]
            columns[name] = _integers(values) if path.suffix == ".csv" else values
    return columns


def _rows(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        if path.suffix == ".csv":
            return list(csv.DictReader(lines))
        return [json.loads(line) for line in lines if line.strip()]


def _integers(values: list) -> list:
    """A csv column as integers if all of it is."""
    for value in values:
        if value is None or not re.fullmatch(r"-?\d{1,18}", value):
            return values
    return [int(value) for value in values]
