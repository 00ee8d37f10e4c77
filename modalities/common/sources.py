"""Opens what a user has (folders, files, tables, Hub names) as one `datasets.Dataset`, whose media stay encoded."""

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from d2v.modalities.common import remote, shards, table_files
from d2v.modalities.common.documents import AUTO, documents
from d2v.modalities.common.encodings import encoding_of
from d2v.modalities.common.folders import has_configs, is_ignored, walk, with_names
from d2v.modalities.common.joining import join, unread_splits
from d2v.modalities.common.kinds import AUDIO, CURES, IMAGES, TABLES, TEXTS, UNNAMED, extension, is_of, named, summary
from d2v.modalities.common.known import known
from d2v.modalities.common.media import METADATA, media_files
from d2v.modalities.common.splits import choose, expanded
from d2v.modalities.common.tables import KNOWN, file_paths, media_column, media_kinds, name_rows, with_folders
from d2v.protocols import NoSplitError

__all__ = ["AUDIO", "IMAGES", "TEXTS", "notes", "open_source", "splits", "with_splits"]
EXPRESSION = re.compile(r"[\w.-]+(\[[^]]*\])?(\+[\w.-]+(\[[^]]*\])?)*")  # train[:100]+test-clean
SAVED = ("dataset_dict.json", "state.json")  # which save_to_disk of `datasets` writes
CLIPS = "clips"  # where the recordings of Common Voice's tables lie
LISTED = ".trans.txt"  # how the names of LibriSpeech's lists of transcripts end
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
        return _with_notes(name_rows(opened, path, split, what), notes(opened), splits(opened))

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
        return _with_notes(join(parts, split, what), list(itertools.chain(*map(notes, parts))), [*names])
    name = os.fspath(path)
    local = Path(name).expanduser().absolute()
    if local.is_dir():
        if any((local / name).is_file() for name in SAVED):
            _no_files(sample_by, local)
            return _saved(local, split)
        if has_configs(local / "README.md"):
            _no_files(sample_by, local)
            opened = _open_described(local, split, what, known)
            return _with_notes(opened, [], splits(opened))
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
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", name):
        raise ValueError(f"data.path {name!r} does not exist (looked for {local})")
    hub, _, config = name.partition(":")
    where = f"data.path {name!r} is no local file or folder (looked for {local}); as a Hub data set"
    _no_files(sample_by, name)
    return _load(split, where, what, hub, config or None)


def notes(dataset: datasets.Dataset) -> list[str]:
    """What is to be said of how `open_source` chose what it read, a line each; parts of the data set keep it."""
    return dataset.info.description.splitlines()


def splits(dataset: datasets.Dataset) -> list[str]:
    """The names of the splits that what `open_source` read is divided into; one or none: it is not."""
    return list(dataset.info.splits or ())


def _with_notes(dataset: datasets.Dataset, said: list[str], names: list[str]) -> datasets.Dataset:
    dataset.info.description = "\n".join(" ".join(note.split()) for note in said)  # names of files may hold line ends
    return with_splits(dataset, names)


def with_splits(dataset: datasets.Dataset, names: Iterable[str]) -> datasets.Dataset:
    """The data set, of which these are said to be its splits."""
    dataset.info.splits = datasets.SplitDict({name: datasets.SplitInfo(name) for name in names})
    return dataset


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
    if extensions == AUDIO and wanted is not tables:
        left, beside = _beside(left, wanted)
        if beside:
            said = [
                *said,
                f"beside recordings: {len(beside)} .txt, which fine-tuning reads as transcripts",
            ]
    parts, names = [], dict[str, None]()
    if EXPRESSION.fullmatch(split) and extensions != TEXTS and wanted is not tables:
        split = expanded(wanted, root, split)
    for one in split.split("+") if EXPRESSION.fullmatch(split) else [split]:
        name = one.partition("[")[0] if one.endswith("]") else one
        chosen = choose(wanted, root, name, split)
        said, names = said + chosen.notes, names | dict.fromkeys(chosen.splits)
        opened = _open_kind(chosen.files, chosen.root, name, extensions, what, known, sample_by)
        said += [note for note in notes(opened) if note not in said]
        parts.append(_cut(opened, name, one))
    if left:
        said = [*said, f"not read: {summary(left)}"]
    return _with_notes(join(parts, split, what) if len(parts) > 1 else parts[0], said, [*names])


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


def _beside(others: list[Path], recordings: list[Path]) -> tuple[list[Path], list[Path]]:
    """Other files without, and those with the transcript of a recording: a.txt beside a.wav, LibriSpeech's lists."""
    names = {file.with_suffix("") for file in recordings}
    transcripts = [
        file
        for file in others
        if file.name.endswith(LISTED) or (file.suffix == ".txt" and file.with_suffix("") in names)
    ]
    return [file for file in others if file not in set(transcripts)], transcripts


def _metadata(files: list[Path]) -> list[Path]:
    """What describes media files beside it."""
    return [file for file in files if file.name in METADATA]


def _cut(dataset: datasets.Dataset, name: str, part: str) -> datasets.Dataset:
    """The rows that a part of data.split means, as in train[:100]. ValueError: it cannot be read."""
    if part == name:
        return dataset
    instruction = datasets.ReadInstruction.from_spec(f"rows{part[len(name) :]}")
    (rows,) = instruction.to_absolute({"rows": len(dataset)})
    return dataset.select(range(rows.from_, rows.to))


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
            return _with_notes(opened, shards.slow_groups(files), [])
        return _load("train", str(root), what, "parquet", data_files=[glob.escape(str(file)) for file in files])
    if extensions == TEXTS:
        return _texts(files, root, split, sample_by)
    return media_files(files, root, split, extensions)


def _texts(files: list[Path], root: Path, split: str, sample_by: str) -> datasets.Dataset:
    """The lines of text files, column "text", or whole files with the columns of `documents`."""
    whole, said = documents(files, root, split, sample_by)
    if whole is not None:
        return _with_notes(whole, said, [])
    parts = []
    for encoding, some in itertools.groupby(files, encoding_of):
        names = [glob.escape(str(file)) for file in some]
        parts.append(_load("train", str(root), "text", "text", data_files=names, encoding=encoding))
    return _with_notes(datasets.concatenate_datasets(parts), said, [])


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
    whole = parts[0] if len(parts) == 1 else join(parts, split, what)
    return _with_notes(whole, unread_splits(whole), [])


def _folder_of(dataset: datasets.Dataset, kind: str, table: Path) -> Path:
    """What paths in a table are relative to: its folder, or clips/ there if the first lies there (Common Voice)."""
    paths = file_paths(dataset, media_column(dataset, kind)) or []
    first = next((path for path in paths if path), "")
    in_clips = first and not (table.parent / first).exists() and (table.parent / CLIPS / first).exists()
    return table.parent / CLIPS if in_clips else table.parent


def _with_absolute_paths(dataset: datasets.Dataset, where: str, what: str, files: dict, split: str) -> datasets.Dataset:
    """The rows of parquet `files` of each split, with absolute paths in place of those relative to a file's folder."""
    relative = {}  # a path of each kind
    for kind in media_kinds(dataset, what):
        paths = file_paths(dataset, media_column(dataset, kind)) or []
        relative[kind] = next((path for path in paths if path and not Path(path).is_absolute()), None)
    if not any(relative.values()):
        return dataset
    folders: dict[str, list[Path]] = {}
    for name, some in files.items():
        folders[name] = []
        for file in map(Path, some):
            if file.suffix.lower() != ".parquet" or not file.is_file():
                if not relative[what]:  # who reads the others will hear of it
                    return dataset
                raise ValueError(f"{where} names files by paths, such as {relative[what]!r}, and has none")
            folders[name] += [file.parent] * pq.read_metadata(file).num_rows
    places = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(some) for name, some in folders.items()})
    of_rows = [*itertools.chain(*(folders[part.splitname][part.from_ : part.to] for part in places))]
    for kind, path in relative.items():
        dataset = with_folders(dataset, kind, of_rows) if path else dataset
    return dataset


def _open_described(folder: Path, split: str, what: str, known: Sequence[str]) -> datasets.Dataset:
    """A folder whose README says which files are which split."""
    where = f"data.path {folder}"
    with _told(where):
        files = datasets.load_dataset_builder(str(folder)).config.data_files or {}
    if not files or not {Path(file).suffix for file in itertools.chain(*files.values())} <= {*table_files.SUFFIXES}:
        return _load(split, where, what, str(folder))
    parts = _parts(split, where, [*files], lambda name: _open_tables([*map(Path, files[name])], name, what, known))
    return _with_notes(join(parts, split, what), [], [*files])


def _parts(split: str, where: str, names: Sequence[str], opened: Callable[[str], Any]) -> list[datasets.Dataset]:
    """The rows of each part of data.split, of data that has splits of these names. ValueError: there is none such."""
    parts = []
    for one in split.split("+"):
        name = one.partition("[")[0]
        if name not in names:
            raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(names)}")
        parts.append(_cut(opened(name), name, one))
    return parts


def _saved(folder: Path, split: str) -> datasets.Dataset:
    """What `save_to_disk` wrote, undecoded. ValueError: it cannot be read, or there is no such split."""
    where = f"data.path {folder}"
    with _told(where):
        opened = datasets.load_from_disk(str(folder))
    if isinstance(opened, datasets.Dataset):
        opened = datasets.DatasetDict({"train": opened})
    parts = _parts(split, where, [*map(str, opened)], opened.__getitem__)
    joined = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return _with_notes(_undecoded(joined), [], [*map(str, opened)])


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set, whose cells of media stay as they are written."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def _load(split: str, where: str, what: str, *args: Any, **options: Any) -> datasets.Dataset:
    """What `datasets.load_dataset_builder` opens, undecoded. ValueError: it cannot, or there is no such split."""
    with _told(where):
        builder = datasets.load_dataset_builder(*args, **options)
        if "encoding_errors" in vars(builder.config):  # one bad byte must not stop a run: who reads lines counts such
            builder.config.encoding_errors = "replace"
        builder.download_and_prepare()
    names = list(builder.info.splits or ())
    if not {part.partition("[")[0] for part in split.split("+")} <= set(names):  # train.clean.100+train.clean.360
        raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(names)}")
    dataset = _undecoded(builder.as_dataset(split=split))
    return _with_notes(_with_absolute_paths(dataset, where, what, builder.config.data_files or {}, split), [], names)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """ValueError: what `datasets` raises inside, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a Hub data set that is a script
        if isinstance(error, ConnectionError):
            raise ValueError(
                f"{where} cannot be read: the Hub could not be reached ({error}); "
                "give data.path=FOLDER, with files of your own, or a table"
            ) from error
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"{where} cannot be read: {type(error).__name__}: {error}{cause}") from error
