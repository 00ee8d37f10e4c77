"""Opens what a user has (folders, files, tables, Hub names) as one `datasets.Dataset`, whose media stay encoded."""

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from d2v.modalities.common import remote, shards, table_files
from d2v.modalities.common.documents import AUTO, documents
from d2v.modalities.common.encodings import encoding_of
from d2v.modalities.common.folders import alike, has_configs, is_ignored, walk, with_names
from d2v.modalities.common.joining import join
from d2v.modalities.common.kinds import AUDIO, CURES, IMAGES, TABLES, TEXTS, UNNAMED, extension, is_of, named, summary
from d2v.modalities.common.known import known
from d2v.modalities.common.loaded import cut, load, parts_of, saved, told
from d2v.modalities.common.media import METADATA, media_files
from d2v.modalities.common.noted import notes, splits, with_notes, with_splits
from d2v.modalities.common.split_column import rows_of, unread
from d2v.modalities.common.splits import Chosen, choose, expanded
from d2v.modalities.common.tables import KNOWN, file_paths, media_column, media_kinds, name_rows, with_folders
from d2v.protocols import NoSplitError

__all__ = ["AUDIO", "IMAGES", "TEXTS", "notes", "open_source", "splits", "with_splits"]
NAMED = r"[\w.-]+(?: [\w.-]+)*(\[[^]]*\])?"  # a name may hold blanks: Training Set
EXPRESSION = re.compile(rf"{NAMED}(\+{NAMED})*")  # train[:100]+test-clean
SAVED = ("dataset_dict.json", "state.json")  # which save_to_disk of `datasets` writes
CLIPS = "clips"  # where the recordings of Common Voice's tables lie
FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".tar", ".zip", ".wav", ".flac", ".jpg", ".png")
LISTED = ".trans.txt"  # how the names of LibriSpeech's lists of transcripts end
BESIDE = {  # what is said of texts of their names
    AUDIO: "beside recordings: {} .txt, which fine-tuning reads as transcripts",
    IMAGES: "beside images: {} .txt, which pairs of images and text read as captions",
}
READ = 2 << 20  # characters of a text file that are in memory at a time, several times over
DOCUMENTS = ("readme", "license", "licence", "notice", "citation", "changelog", "requirements")  # about data


def open_source(
    path: Any, split: str, extensions: Sequence[str], what: str, columns: Sequence[str] = (), sample_by: str = AUTO
) -> datasets.Dataset:
    """One data set from a folder, file, glob, address (see remote.py), Hub name ("org/name" or "org/name:config"), or a
    list of these.

    Folders of media give the columns "file" (absolute path) and "label" (sub-folder, if all files lie in sub-folders)
    or those of metadata.csv / metadata.jsonl; text files give one row per line, column "text", or per file: see
    documents.py. Media are never decoded.
    `columns`: names that settings give; a table without any that is known has no names of columns.
    `sample_by`: what a sample of text files is.
    ValueError: says what is missing and what there is.
    """
    datasets.disable_progress_bars()  # of the training loop alone is one shown
    path = remote.fetched(path)

    def open_anew() -> datasets.Dataset:
        opened = _open(path, split, tuple(extensions), what, (*columns, *KNOWN[what]), sample_by)
        return with_notes(name_rows(opened, path, split, what), notes(opened), splits(opened))

    return known(path, split, extensions, [what, list(columns), sample_by], open_anew)


def _open(
    path: Any, split: str, extensions: tuple[str, ...], what: str, known: Sequence[str], sample_by: str
) -> datasets.Dataset:
    if not path:
        raise ValueError(
            f"data.path is required: a folder of {what} files, a table (parquet, csv, jsonl), a Hub data set, "
            "or a list of these"
        )
    if not isinstance(path, str | os.PathLike):
        parts = [_open(entry, split, extensions, what, known, sample_by) for entry in path]
        names = dict.fromkeys(itertools.chain(*map(splits, parts)))
        return with_notes(join(parts, split, what), list(itertools.chain(*map(notes, parts))), [*names])
    name = os.fspath(path)
    local = Path(name).expanduser().absolute()
    if local.is_dir():
        if any((local / name).is_file() for name in SAVED):
            _no_files(sample_by, local)
            return saved(local, split)
        if has_configs(local / "README.md"):
            _no_files(sample_by, local)
            opened = _open_described(local, split, what, known)
            return with_notes(opened, notes(opened), splits(opened))
        files, said = walk(local)
        shards.check_complete(files)
        if not files:
            raise ValueError(f"data.path {local} is an empty folder{': ' if said else ''}{'; '.join(said)}")
        return _open_files(files, split, extensions, what, local, said, known, sample_by)
    if local.is_file():
        return _open_files([local], split, extensions, what, local.parent, [], known, sample_by)
    if glob.has_magic(name):
        files, said = _matches(local, name)
        root = Path(os.path.commonpath([file.parent for file in files]))
        return _open_files(files, split, extensions, what, root, said, known, sample_by)
    is_file = local.suffix.lower() in FILES  # which no Hub data set's name ends with
    if is_file or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", name):
        raise ValueError(f"data.path {name!r} does not exist (looked for {local}{alike(local)})")
    hub, _, config = name.partition(":")
    where = f"data.path {name!r} is no local file or folder (looked for {local}{alike(local)}); as a Hub data set"
    _no_files(sample_by, name)
    return load(split, where, what, hub, config or None)


def _matches(local: Path, name: str) -> tuple[list[Path], list[str]]:
    """The files that a pattern matches, and what is said of others. ValueError: none."""
    pattern = local.relative_to(local.anchor)
    files = []
    for match in sorted(Path(local.anchor).glob(str(pattern))):
        parts = match.relative_to(local.anchor).parts
        ignored = any(is_ignored(part) and part not in pattern.parts for part in parts)
        if match.is_file() and not ignored:
            files.append(match)
    files, said = with_names(files)
    if not files:
        raise ValueError(f"data.path {name!r} matches no file (looked for {local}){''.join(said)}")
    return files, said


def _open_files(
    files: list[Path],
    split: str,
    extensions: tuple[str, ...],
    what: str,
    root: Path,
    said: list[str],
    known: Sequence[str],
    sample_by: str,
) -> datasets.Dataset:
    """Those of `files` that are of the kind that is looked for, or else the tables among them; `said`: of others.

    ValueError: neither, or no such split.
    """
    wanted = [file for file in files if is_of(file, extensions)]
    tables = _tables(files)
    if not wanted or (tables and all(file.stem.lower() in DOCUMENTS for file in wanted)):
        wanted = tables
        _no_files(sample_by, root)
    gone: list[Path] = []
    if extensions == TEXTS or wanted is tables:  # of media, what cannot be read is counted one by one
        gone = [file for file in wanted if not file.is_file()]
        if gone:
            wanted = [file for file in wanted if file not in gone]
            said = [*said, f"skipped: {len(gone)} that are no files ({named(gone)})"]
    if not wanted:
        raise ValueError(f"data.path {root} has no {what} files: {_there_is(files, extensions, what, said)}")
    others = set(files).difference(wanted, _metadata(files))
    left = [file for file in sorted(others) if file.suffix in TEXTS or file.stem.lower() not in DOCUMENTS]
    left = [file for file in left if file not in gone]
    if extensions in BESIDE and wanted is not tables:
        left, beside = _beside(left, wanted)
        said = [*said, *([BESIDE[extensions].format(len(beside))] if beside else [])]
    parts, names = [], dict[str, None]()
    if EXPRESSION.fullmatch(split) and extensions != TEXTS and wanted is not tables:
        split = expanded(wanted, root, split)
    for one in split.split("+") if EXPRESSION.fullmatch(split) else [split]:
        name = one.partition("[")[0] if one.endswith("]") else one
        chosen = choose(wanted, root, name, split)
        _check_there(chosen, tables if wanted is tables else _metadata(files))
        opened = _open_kind(chosen.files, chosen.root, name, extensions, what, known, sample_by)
        opened = rows_of(opened, chosen, name, split)
        said, names = said + chosen.notes, names | dict.fromkeys(max(chosen.splits, splits(opened), key=len))
        said += [note for note in notes(opened) if note not in said]
        parts.append(cut(opened, name, one))
    if left:
        said = [*said, f"not read: {summary(left)}"]
    return with_notes(join(parts, split, what) if len(parts) > 1 else parts[0], said, [*names])


def _check_there(chosen: Chosen, tables: list[Path]) -> None:
    """ValueError: the split is not there, and there are no tables, a column of which may say which rows are of it."""
    if chosen.missing and not tables:
        raise NoSplitError(chosen.missing, chosen.splits)


def _tables(files: list[Path]) -> list[Path]:
    """The tables of the one kind that is meant: the first of TABLES that there is."""
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    for suffix in TABLES:
        some = [file for file in by_suffix.get(suffix, []) if file.name not in METADATA]
        if some:
            return some
    return []


def _beside(others: list[Path], media: list[Path]) -> tuple[list[Path], list[Path]]:
    """Other files without, and those with the text of a media file: a.txt beside a.wav, LibriSpeech's lists."""
    names = {file.with_suffix("") for file in media}
    texts = [
        file
        for file in others
        if file.name.endswith(LISTED) or (file.suffix == ".txt" and file.with_suffix("") in names)
    ]
    return [file for file in others if file not in set(texts)], texts


def _metadata(files: list[Path]) -> list[Path]:
    """What describes media files beside it."""
    return [file for file in files if file.name in METADATA]


def _open_kind(
    files: list[Path],
    root: Path,
    split: str,
    extensions: tuple[str, ...],
    what: str,
    known: Sequence[str],
    sample_by: str,
) -> datasets.Dataset:
    """Files that are all tables, or all of the kind `extensions`."""
    suffix = files[0].suffix.lower()
    if suffix in table_files.SUFFIXES:
        return _open_tables(files, split, what, known)
    if suffix == shards.TAR:
        return shards.of_tars(files, extensions, what)
    if suffix == ".parquet" and suffix not in extensions:
        opened = None if what == "text" else shards.of_tables(files)
        if opened is not None:
            return with_notes(opened, shards.slow_groups(files), [])
        return load("train", str(root), what, "parquet", data_files=[glob.escape(str(file)) for file in files])
    if extensions == TEXTS:
        return _texts(files, root, split, sample_by)
    return media_files(files, root, split, extensions)


def _texts(files: list[Path], root: Path, split: str, sample_by: str) -> datasets.Dataset:
    """The lines of text files, column "text", or whole files with the columns of `documents`."""
    whole, said = documents(files, root, split, sample_by)
    if whole is not None:
        return with_notes(whole, said, [])
    parts = []
    for encoding, some in itertools.groupby(files, encoding_of):
        names = [glob.escape(str(file)) for file in some]
        parts.append(load("train", str(root), "text", "text", data_files=names, encoding=encoding, chunksize=READ))
    joined = datasets.concatenate_datasets(parts)
    joined.info.builder_name = "text"  # which is lost where files are of several encodings
    return with_notes(joined, said, [])


def _no_files(sample_by: str, path: Any) -> None:
    """ValueError: samples by lines or files of what is read as rows of a table."""
    if sample_by != AUTO:
        raise ValueError(
            f"data.sample_by is {sample_by!r}, and nothing reads it: it is of text files, and data.path {path} is a "
            "table, whose rows are the samples: leave it out"
        )


def _there_is(files: list[Path], extensions: Sequence[str], what: str, said: list[str]) -> str:
    """The end of an error: how many files of which kind there are, and what kind was looked for."""
    counts = Counter(extension(file) or UNNAMED for file in files).most_common(5)
    kinds = ", ".join(
        f"{number} {suffix}{f' ({CURES[suffix]})' if suffix in CURES else ''}" for suffix, number in counts
    )
    return "; ".join([f"found {kinds or 'nothing'}", *said, f"{what} files are {' '.join(extensions)}"])


def _open_tables(files: Sequence[Path], split: str, what: str, known: Sequence[str]) -> datasets.Dataset:
    """Tables that are text; the paths of media in them are relative to the table's folder.

    ValueError: as table_files.read, or no known name of a column.
    """
    parts = []
    for file in files:
        table = table_files.read(file)
        if file.suffix.lower() in (".csv", ".tsv"):
            table_files.check_header(file, table.column_names, known)
        dataset = datasets.Dataset(table)
        for kind in media_kinds(dataset, what):
            dataset = with_folders(dataset, kind, [_folder_of(dataset, kind, file)] * len(dataset))
        parts.append(dataset)
    return parts[0] if len(parts) == 1 else join(parts, split, what)


def _folder_of(dataset: datasets.Dataset, kind: str, table: Path) -> Path:
    """What paths in a table are relative to: its folder, or clips/ there if the first lies there (Common Voice)."""
    paths = file_paths(dataset, media_column(dataset, kind)) or []
    first = next((path for path in paths if path), "")
    in_clips = first and not (table.parent / first).exists() and (table.parent / CLIPS / first).exists()
    return table.parent / CLIPS if in_clips else table.parent


def _open_described(folder: Path, split: str, what: str, known: Sequence[str]) -> datasets.Dataset:
    """A folder whose README says which files are which split."""
    where = f"data.path {folder}"
    with told(where):
        files = datasets.load_dataset_builder(str(folder)).config.data_files or {}
    if not files or not {Path(file).suffix for file in itertools.chain(*files.values())} <= {*table_files.SUFFIXES}:
        return load(split, where, what, str(folder))
    parts = parts_of(split, where, [*files], lambda name: _open_tables([*map(Path, files[name])], name, what, known))
    said = dict.fromkeys(itertools.chain(*map(unread, parts)))
    return with_notes(join(parts, split, what), [*said], [*files])
