"""What `datasets` opens by itself: Hub data sets, folders that say which files are which split, parquet, saved data."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from d2v.modalities.common.noted import with_notes
from d2v.modalities.common.split_column import unread
from d2v.modalities.common.tables import file_paths, media_column, media_kinds, with_folders
from d2v.protocols import NoSplitError
from d2v.split_names import expanded


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


def parts_of(split: str, where: str, names: Sequence[str], opened: Callable[[str], Any]) -> list[datasets.Dataset]:
    """The rows of each part of data.split, of data that has splits of these names. ValueError: there is none such."""
    parts, split = [], expanded(split, names)
    for one in split.split("+"):
        name = one.partition("[")[0]
        if name not in names:
            raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(names)}", names)
        parts.append(cut(opened(name), name, one))
    return parts


def saved(folder: Path, split: str) -> datasets.Dataset:
    """What `save_to_disk` wrote, undecoded. ValueError: it cannot be read, or there is no such split."""
    where = f"data.path {folder}"
    with told(where):
        opened = datasets.load_from_disk(str(folder))
    if isinstance(opened, datasets.Dataset):
        opened = datasets.DatasetDict({"train": opened})
    parts = parts_of(split, where, [*map(str, opened)], opened.__getitem__)
    joined = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    said = dict.fromkeys(itertools.chain(*map(unread, parts)))
    return with_notes(_undecoded(joined), [*said], [*map(str, opened)])


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set, whose cells of media stay as they are written."""
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def load(split: str, where: str, what: str, *args: Any, **options: Any) -> datasets.Dataset:
    """What `datasets.load_dataset_builder` opens, undecoded. ValueError: it cannot, or there is no such split."""
    with told(where):
        builder = datasets.load_dataset_builder(*args, **options)
        if "encoding_errors" in vars(builder.config):  # one bad byte must not stop a run: who reads lines counts such
            builder.config.encoding_errors = "replace"
        builder.download_and_prepare()
    names = list(builder.info.splits or ())
    split = expanded(split, names)
    if not {part.partition("[")[0] for part in split.split("+")} <= set(names):  # train.clean.100+train.clean.360
        raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(names)}", names)
    dataset = _undecoded(builder.as_dataset(split=split))
    return with_notes(_with_absolute_paths(dataset, where, what, builder.config.data_files or {}, split), [], names)


@contextmanager
def told(where: str) -> Iterator[None]:
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


def cut(dataset: datasets.Dataset, name: str, part: str) -> datasets.Dataset:
    """The rows that a part of data.split means, as in train[:100]. ValueError: it cannot be read, or there are none."""
    if part == name:
        return dataset
    count = len(dataset)
    try:
        (rows,) = datasets.ReadInstruction.from_spec(f"rows{part[len(name) :]}").to_absolute({"rows": count})
    except (ValueError, AssertionError):
        raise ValueError(
            f"data.split {part!r} is no slice; it may be {name}[:100], {name}[10%:20%] or {name}[-50:]"
        ) from None
    first, last = min(rows.from_, count), min(rows.to, count)
    if first >= last:
        raise ValueError(f"data.split {part!r} takes none of the {count} rows of {name}")
    return dataset.select(range(first, last))
