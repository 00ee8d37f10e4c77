"""Opens what a user has (folders, files, tables, Hub names) as one `datasets.Dataset`, whose media stay encoded."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from d2v.modalities.common.joining import join
from d2v.modalities.common.media import media_files
from d2v.modalities.common.splits import files_of_split, split_folder
from d2v.modalities.common.tables import PATH_COLUMNS, is_string

AUDIO = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64", ".m4a")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".npy")
TEXTS = (".txt",)
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}


def open_source(path: Any, split: str, extensions: Sequence[str], what: str) -> datasets.Dataset:
    """One data set from a folder, file, glob, Hub name ("org/name" or "org/name:config"), or a list of these.

    Folders of media give the columns "file" (absolute path) and "label" (sub-folder, if all files lie in sub-folders)
    or those of metadata.csv / metadata.jsonl; text files give one row per line, column "text". Media are never decoded.
    ValueError: says what is missing and what there is.
    """
    if not path:
        raise ValueError(
            f"data.path is required: a folder of {what} files, a table (parquet, csv, jsonl), a Hub data set, "
            "or a list of these"
        )
    if not isinstance(path, str | os.PathLike):
        return join([open_source(entry, split, extensions, what) for entry in path], split)
    name = os.fspath(path)
    local = Path(name).expanduser().absolute()
    if local.is_dir():
        return _open_folder(local, split, tuple(extensions), what)
    if local.is_file():
        return _open_files([local], split, tuple(extensions), what, local.parent)
    if glob.has_magic(name):
        return _open_glob(local, name, split, tuple(extensions), what)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", name):
        raise ValueError(f"data.path {name!r} does not exist (looked for {local})")
    hub, _, config = name.partition(":")
    where = f"data.path {name!r} is no local file or folder (looked for {local}); as a Hub data set"
    return _load(split, where, hub, config or None)


def _open_glob(local: Path, name: str, split: str, extensions: tuple[str, ...], what: str) -> datasets.Dataset:
    matches = Path(local.anchor).glob(str(local.relative_to(local.anchor)))
    files = sorted(match for match in matches if match.is_file())
    if not files:
        raise ValueError(f"data.path {name!r} matches no file (looked for {local})")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return _open_files(files, split, extensions, what, root)


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
        root = split_folder(folder, split, files, extensions)
        chosen = [file for file in files if file.suffix.lower() in extensions and file.is_relative_to(root)]
        if not chosen:
            raise ValueError(f"data.path {root} has no {what} files: {_there_is(_walk(root), extensions, what)}")
        return _open_files(chosen, split, extensions, what, root, divided=root != folder)
    tables = [file for file in files if file.suffix.lower() in TABLES and file.stem != "metadata"]
    if tables:
        return _load(split, f"data.path {folder}", str(folder))
    raise ValueError(f"data.path {folder} has no {what} files: {_there_is(files, extensions, what)}")


def _open_files(
    files: list[Path], split: str, extensions: tuple[str, ...], what: str, root: Path, *, divided: bool = False
) -> datasets.Dataset:
    """`files` of one kind, all media or all tables; `divided`: they are already those of `split`."""
    kinds = {file.suffix.lower() for file in files}
    if not divided:
        files = files_of_split(files, split, by_name=not kinds & set(extensions) or extensions == TEXTS)
    if kinds <= set(extensions):
        if extensions == TEXTS:
            return _load("train", str(root), "text", data_files=[str(file) for file in files])
        return media_files(files, root, split)
    builders = {TABLES.get(kind) for kind in kinds}
    if len(builders) != 1 or None in builders:
        raise ValueError(f"data.path has no {what} files: {_there_is(files, extensions, what)}")
    options = {"sep": "\t"} if kinds == {".tsv"} else {}
    dataset = _load("train", str(root), builders.pop(), data_files=[str(file) for file in files], **options)
    return _with_absolute_paths(dataset, root)


def _walk(folder: Path) -> Iterator[Path]:
    """Files at any depth in sorted order; hidden ones are left out."""
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(here, name)


def _has_configs(readme: Path) -> bool:
    """Whether a README begins with what the Hub reads: which files are which data set."""
    if not readme.is_file():
        return False
    return re.match(r"---\s*\n(.*\n)*?configs:", readme.read_text(encoding="utf-8", errors="replace")) is not None


def _there_is(files: Iterable[Path], extensions: Sequence[str], what: str) -> str:
    """The end of an error: how many files of which kind there are, and what kind was looked for."""
    counts = Counter(file.suffix.lower() or "files without extension" for file in files).most_common(5)
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in counts)
    return f"found {kinds or 'nothing'}; {what} files are {' '.join(extensions)}"


def _with_absolute_paths(dataset: datasets.Dataset, root: Path) -> datasets.Dataset:
    """Paths in a table are relative to the table's folder."""
    for name in set(PATH_COLUMNS) & set(dataset.column_names):
        if is_string(dataset.features[name]):
            paths = [None if cell is None else str(root / cell) for cell in dataset[name]]
            dataset = dataset.remove_columns(name).add_column(name, paths)
    return dataset


def _load(split: str, where: str, *args: Any, **options: Any) -> datasets.Dataset:
    """What `datasets.load_dataset_builder` opens, undecoded. ValueError: it cannot, or there is no such split."""
    try:
        builder = datasets.load_dataset_builder(*args, **options)
        if "encoding_errors" in vars(builder.config):  # one bad byte must not stop a run: who reads lines counts such
            builder.config.encoding_errors = "replace"
        builder.download_and_prepare()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a Hub data set that is a script
        if isinstance(error, ConnectionError):
            raise ValueError(
                f"{where} cannot be read: the Hub could not be reached ({error}); "
                "give data.path=FOLDER, with files of your own, or a table"
            ) from error
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"{where} cannot be read: {type(error).__name__}: {error}{cause}") from error
    splits = list(builder.info.splits or ())
    if not {part.partition("[")[0] for part in split.split("+")} <= set(splits):  # train.clean.100+train.clean.360
        raise ValueError(f"data.split {split!r}: {where} has the splits {', '.join(splits)}")
    dataset: Any = builder.as_dataset(split=split)
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset
