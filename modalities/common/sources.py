"""Opens what a user has (folders, files, tables, Hub names) as one `datasets.Dataset`, and reports what is usable in it."""

import csv
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.exceptions import DatasetsError

AUDIO = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64", ".m4a")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".npy")
TEXTS = (".txt",)
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
PATH_COLUMNS = ("file", "path", "file_name", "filename", "file_path")


def open_source(path: Any, split: str, extensions: Sequence[str], what: str) -> datasets.Dataset:
    """One data set from a folder, file, glob, Hub name ("org/name" or "org/name:config"), or a list of these; media are never decoded.

    Folders of media give the columns "file" (absolute path) and "label" (sub-folder, if all files lie in sub-folders) or those of
    metadata.csv / metadata.jsonl; text files give one row per line, column "text". ValueError: says what is missing and what there is.
    """
    if not path:
        raise ValueError(
            f"data.path is required: a folder of {what} files, a table (parquet, csv, jsonl), a Hub data set, or a list of these"
        )
    if not isinstance(path, str | os.PathLike):
        return _join([open_source(entry, split, extensions, what) for entry in path], split)
    name = os.fspath(path)
    local = Path(name).expanduser().absolute()
    if local.is_dir():
        return _open_folder(local, split, tuple(extensions), what)
    if local.is_file():
        return _open_files([local], split, tuple(extensions), what, local.parent)
    if glob.has_magic(name):
        found = sorted(p for p in Path(local.anchor).glob(str(local.relative_to(local.anchor))) if p.is_file())
        if not found:
            raise ValueError(f"data.path {name!r} matches no file (looked for {local})")
        return _open_files(found, split, tuple(extensions), what, Path(os.path.commonpath([p.parent for p in found])))
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", name):
        raise ValueError(f"data.path {name!r} does not exist (looked for {local})")
    hub, _, config = name.partition(":")
    return _load(
        split,
        f"data.path {name!r} is no local file or folder (looked for {local}); as a Hub data set",
        hub,
        config or None,
    )


# Folders and files.


def _open_folder(folder: Path, split: str, extensions: tuple[str, ...], what: str) -> datasets.Dataset:
    if _has_configs(folder / "README.md"):
        return _load(split, f"data.path {folder}", str(folder))
    files = list(_walk(folder))
    if not files:
        raise ValueError(f"data.path {folder} is an empty folder")
    suffixes = Counter(file.suffix.lower() for file in files)
    if suffixes[".parquet"] and ".parquet" not in extensions:
        return _load(split, f"data.path {folder}", str(folder))
    if any(suffixes[extension] for extension in extensions):
        root = _split_root(folder, split, files, extensions)
        chosen = [file for file in files if file.suffix.lower() in extensions and file.is_relative_to(root)]
        if not chosen:
            raise ValueError(f"data.path {root} has no {what} files: {_found(_walk(root), extensions, what)}")
        return _open_files(chosen, split, extensions, what, root, divided=root != folder)
    tables = [file for file in files if file.suffix.lower() in TABLES and file.stem != "metadata"]
    if tables:
        return _load(split, f"data.path {folder}", str(folder))
    raise ValueError(f"data.path {folder} has no {what} files: {_found(files, extensions, what)}")


def _open_files(
    files: list[Path], split: str, extensions: tuple[str, ...], what: str, root: Path, *, divided: bool = False
) -> datasets.Dataset:
    """`files` of one kind, all media or all tables; `divided`: they are already those of `split`."""
    kinds = {file.suffix.lower() for file in files}
    if not divided:
        files = _of_split(files, split, by_name=not kinds & set(extensions) or extensions == TEXTS)
    if kinds <= set(extensions):
        if extensions == TEXTS:
            return _load("train", str(root), "text", data_files=[str(file) for file in files])
        return _media(files, root, split)
    builders = {TABLES.get(kind) for kind in kinds}
    if len(builders) != 1 or None in builders:
        raise ValueError(f"data.path has no {what} files: {_found(files, extensions, what)}")
    options = {"sep": "\t"} if kinds == {".tsv"} else {}
    return _absolute(
        _load("train", str(root), builders.pop(), data_files=[str(file) for file in files], **options), root
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Files at any depth in sorted order; hidden ones are left out."""
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _split_root(folder: Path, split: str, files: list[Path], extensions: tuple[str, ...]) -> Path:
    """The sub-folder of `split`, or the folder itself if it is not divided. ValueError: it is divided and has no such split."""
    inner = {
        file.relative_to(folder).parts[0]
        for file in files
        if file.suffix.lower() in extensions and file.parent != folder
    }
    known = inner & {*SPLITS, split}
    if len(known) == 1 and inner - known:  # classes of which one happens to be called "train", as in bus, car, train
        known = set()
    if split in known:
        return folder / split
    if known:
        raise ValueError(f"data.split {split!r}: {folder} has the splits {', '.join(sorted(known))}")
    return folder


def _of_split(files: list[Path], split: str, *, by_name: bool) -> list[Path]:
    """The files whose names carry the split, as in test-00000.parquet; undivided files are "train". ValueError: there is no such split."""
    names = {file: {*re.split(r"[-_. ]", file.stem.lower())} & {*SPLITS, split} if by_name else set() for file in files}
    divided = set().union(*names.values())
    if not divided and split == "train":
        return files
    chosen = [file for file in files if split in names[file]]
    if not chosen:
        has = f"the splits {', '.join(sorted(divided))}" if divided else "no splits: all of it is 'train'"
        raise ValueError(f"data.split {split!r}: {files[0].parent} has {has}")
    return chosen


def _media(files: list[Path], root: Path, split: str) -> datasets.Dataset:
    columns: dict[str, list] = {"file": [str(file) for file in files]}
    metadata = _metadata(files, root) or (_metadata(files, root.parent) if root.name == split else None)
    if metadata:
        return datasets.Dataset.from_dict(columns | metadata)
    parts = [file.relative_to(root).parts for file in files]
    if any(len(part) < 2 for part in parts):
        return datasets.Dataset.from_dict(columns)
    label = [part[0] for part in parts]
    classes = set(label)
    if root.name == split:  # another split may hold classes that this one lacks; the numbers must agree
        siblings = [root.parent / name for name in SPLITS if (root.parent / name).is_dir()]
        classes |= {
            inner.name
            for sibling in siblings
            for inner in sibling.iterdir()
            if inner.is_dir() and not inner.name.startswith(".")
        }
    feature = datasets.ClassLabel(names=sorted(classes))
    features = datasets.Features({"file": datasets.Value("string"), "label": feature})
    return datasets.Dataset.from_dict({**columns, "label": feature.str2int(label)}, features=features)


def _metadata(files: list[Path], root: Path) -> dict[str, list] | None:
    """Columns of metadata.csv or metadata.jsonl in file order; None where there is none. ValueError: no file_name, or it names missing files."""
    path = next((root / name for name in ("metadata.csv", "metadata.jsonl") if (root / name).is_file()), None)
    if path is None:
        return None
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = (
            list(csv.DictReader(lines))
            if path.suffix == ".csv"
            else [json.loads(line) for line in lines if line.strip()]
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    if "file_name" not in names:
        raise ValueError(f"{path} has no column 'file_name'; its columns are {', '.join(map(str, names)) or 'none'}")
    by_file = {os.path.normpath(root / row["file_name"]): row for row in rows}
    missing = [name for name in by_file if not Path(name).is_file()]
    if missing:
        raise ValueError(f"{path} names {len(missing)} files that do not exist, the first is {missing[0]}")
    matched = [by_file.get(os.path.normpath(file), {}) for file in files]
    columns = {name: [row.get(name) for row in matched] for name in names if name not in ("file_name", "file")}
    return {name: _integers(values) if path.suffix == ".csv" else values for name, values in columns.items()}


def _integers(values: list) -> list:
    """A csv column as integers if all of it is."""
    return [int(v) for v in values] if all(v is not None and re.fullmatch(r"-?\d{1,18}", v) for v in values) else values


def _has_configs(readme: Path) -> bool:
    return (
        readme.is_file()
        and re.match(r"---\s*\n(.*\n)*?configs:", readme.read_text(encoding="utf-8", errors="replace")) is not None
    )


def _found(files: Iterator[Path] | list[Path], extensions: Sequence[str], what: str) -> str:
    counts = Counter(file.suffix.lower() or "files without extension" for file in files).most_common(5)
    return f"found {', '.join(f'{n} {suffix}' for suffix, n in counts) or 'nothing'}; {what} files are {' '.join(extensions)}"


# Tables and the Hub.


def _load(split: str, where: str, *args: Any, **options: Any) -> datasets.Dataset:
    try:
        builder = datasets.load_dataset_builder(*args, **options)
        if "encoding_errors" in vars(builder.config):
            builder.config.encoding_errors = (
                "replace"  # one bad byte must not stop a run: such lines are counted by who reads them
            )
        builder.download_and_prepare()
    except (OSError, ValueError, DatasetsError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"{where} cannot be read: {type(error).__name__}: {error}{cause}") from error
    splits = list(builder.info.splits or ())
    if split.partition("[")[0] not in splits:
        raise ValueError(f"data.split {split!r}: {where} has the splits {', '.join(splits)}")
    return _undecoded(builder.as_dataset(split=split))


def _undecoded(dataset: Any) -> datasets.Dataset:
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def _absolute(dataset: datasets.Dataset, root: Path) -> datasets.Dataset:
    """Paths in a table are relative to the table's folder."""
    for name in set(PATH_COLUMNS) & set(dataset.column_names):
        if _is_string(dataset.features[name]):
            paths = [None if value is None else str(root / value) for value in dataset[name]]
            dataset = dataset.remove_columns(name).add_column(name, paths)
    return dataset


def _join(parts: list[datasets.Dataset], split: str) -> datasets.Dataset:
    """One data set of the columns that all parts have; class names are united. ValueError: no common column, or of different types."""
    common = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    if not common:
        raise ValueError(
            f"the parts of data.path share no column: {'; '.join(', '.join(part.column_names) for part in parts)}"
        )
    parts = [part.select_columns(common) for part in parts]
    for name in common:
        kinds = [part.features[name] for part in parts]
        if all(isinstance(kind, datasets.ClassLabel) for kind in kinds) and any(kind != kinds[0] for kind in kinds):
            united = datasets.ClassLabel(names=sorted({label for kind in kinds for label in kind.names}))
            codes = [
                np.asarray(united.str2int(kind.int2str(list(part[name]))))
                for part, kind in zip(parts, kinds, strict=True)
            ]
            parts = [
                p.remove_columns(name).add_column(name, c, feature=united) for p, c in zip(parts, codes, strict=True)
            ]
    try:
        return datasets.concatenate_datasets([part.select_columns(common) for part in parts])
    except ValueError as error:
        raise ValueError(f"the parts of data.path (split {split!r}) do not fit together: {error}") from error


# Rows.


class Rows(NamedTuple):
    """A part of a source that is open already, for samples that are read once, in passing: whether they can be decoded shows then."""

    dataset: datasets.Dataset
    first: int  # number of its first row in the source


def _is_string(feature: Any) -> bool:
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
    strings = [name for name, feature in features.items() if _is_string(feature)]
    structs = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    named = [name for name in PATH_COLUMNS if name in strings]
    candidates = (structs + named)[:1] if feature_type else strings if len(strings) == 1 else []
    if not candidates:
        raise ValueError(f"no column holds {kind}; the columns are {', '.join(features)} (name it {kind!r})")
    return candidates[0]


def read_bytes(cell: Any) -> bytes | Path:
    """What a media cell holds: the file's bytes, or where it lies. ValueError: the cell is empty."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError("empty cell")
    return cell if isinstance(cell, bytes) else Path(cell)


def identifiers(dataset: datasets.Dataset, path: Any, split: str, first: int = 0) -> list[str]:
    """A stable name per row: the path below `path` for files, "<split>:<row>" for tables, whose first row has the number `first`."""
    if "file" not in dataset.column_names or not _is_string(dataset.features["file"]):
        return [f"{split}:{first + row}" for row in range(len(dataset))]
    root = Path(path).expanduser().absolute() if isinstance(path, str | os.PathLike) else None
    return [
        os.path.relpath(file, root) if root and Path(file).is_relative_to(root) and root.is_dir() else file
        for file in dataset["file"]
    ]


def column(
    dataset: datasets.Dataset, name: str, rows: np.ndarray, ids: Sequence[str], *, empty: Any = None
) -> np.ndarray:
    """Values of `name` for `rows`, `empty` in place of missing ones. ValueError: no such column, or rows without a value and no `empty`."""
    if name not in dataset.column_names:
        raise ValueError(f"the data has no column {name!r}; its columns are {', '.join(dataset.column_names)}")
    values = list(dataset.select_columns([name]).select(rows)[name])
    missing = [sample for sample, value in zip(ids, values, strict=True) if value is None]
    if missing and empty is None:
        raise ValueError(f"{len(missing)} of {len(values)} samples have no {name!r}, the first is {missing[0]}")
    return np.asarray([empty if value is None else value for value in values])


def classes(dataset: datasets.Dataset, name: str) -> list[str] | None:
    """Class names in the order of the integer labels; of a column of strings, its values in sorted order; None if the source knows none."""
    feature = dataset.features.get(name)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if _is_string(feature):
        return sorted({value for value in dataset[name] if value is not None})
    return None
