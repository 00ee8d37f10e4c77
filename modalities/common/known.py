"""Rows that were found in files once: later starts and other processes map them, while the files are as they were."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from d2v import cache
from d2v.files import RECORD, RESULTS
from d2v.modalities.common import remote
from d2v.modalities.common.folders import has_configs, is_ignored
from d2v.modalities.common.kinds import TABLES, TEXTS
from d2v.modalities.common.tables import NAMES, identifiers
from d2v.split_names import is_split

ROWS, SAID = "rows.arrow", "said.json"
CHUNK = 50_000  # rows that are written at once
SMALL = 1 << 20  # bytes of tables or texts, of which less is read as fast


class Seen(NamedTuple):
    """What data.path holds: a digest that changes with it, how many files, and bytes of those whose content counts."""

    digest: str
    files: int
    size: int


def known(
    path: Any, split: str, extensions: Sequence[str], settings: Sequence[Any], open_anew: Callable[[], datasets.Dataset]
) -> datasets.Dataset:
    """What `open_anew` opens, mapped if it was opened before and the names of files, and the tables, are as they were.

    `settings`: what else the rows depend on. Bytes of media are never copied.
    """
    seen = _look(path, extensions)
    if seen is None or (seen.files < cache.LEAST and seen.size < SMALL):
        return open_anew()
    where = [str(Path(one).expanduser().absolute()) for one in _listed(path)]
    entry = cache.Entry("rows", cache.digest_of(where, split, list(extensions), settings), seen.digest)
    with cache.sought(entry) as folder:
        if folder is None:
            opened = open_anew()
            if opened.cache_files or len(opened) < cache.LEAST or fingerprint(path, extensions) != seen:
                return opened  # mapped already, few, or it has changed meanwhile
            named = _named(opened, path, split)
            folder = cache.keep(entry, partial(_write, named))
            if folder is None:
                return named
    said = json.loads((folder / SAID).read_text())
    mapped = datasets.Dataset.from_file(str(folder / ROWS))
    mapped.info.description = said["notes"]
    mapped.info.splits = datasets.SplitDict({name: datasets.SplitInfo(name) for name in said["splits"]})
    return mapped


def _look(path: Any, extensions: Sequence[str]) -> Seen | None:
    where = [str(Path(one).expanduser().absolute()) for one in _listed(path)]
    return cache.looked(("files", *where, *extensions), lambda: fingerprint(path, extensions))


def state_of(path: Any, extensions: Sequence[str]) -> str | None:
    """What changes if the files of data.path do; None: nobody knows, or they are small."""
    seen = _look(remote.fetched(path), extensions)
    return None if seen is None or (seen.files < cache.LEAST and seen.size < SMALL) else seen.digest


def _listed(path: Any) -> list[Any]:
    """The places that data.path names, lists in lists too."""
    if isinstance(path, str | os.PathLike):
        return [path]
    places = []
    for one in path or []:
        places += _listed(one)
    return places


def _named(dataset: datasets.Dataset, path: Any, split: str) -> datasets.Dataset:
    """The rows with the names that they have, if they have any but their numbers."""
    if NAMES in dataset.column_names or "file" not in dataset.column_names:
        return dataset
    return dataset.add_column(NAMES, pa.array(identifiers(dataset, path, split), pa.string()))


def _write(dataset: datasets.Dataset, folder: Path) -> None:
    schema = dataset.features.arrow_schema
    with pa.OSFile(str(folder / ROWS), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for rows in dataset.with_format("arrow").iter(CHUNK):
            stream.write_table(rows.cast(schema))  # type: ignore[union-attr]
    said = {"notes": dataset.info.description, "splits": list(dataset.info.splits or ())}
    (folder / SAID).write_text(json.dumps(said))


def fingerprint(path: Any, extensions: Sequence[str]) -> Seen | None:
    """Of folders and tables that data.path names: names of media, and sizes and times of what else is read.

    None: there is another thing among them, such as a name on the Hub, of which others keep what they find.
    """
    found = _Finger(extensions)
    for one in _listed(path):
        place = Path(one).expanduser().absolute()
        if not place.exists() and glob.has_magic(str(one)):
            matches = sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
            if not matches or any(match.suffix.lower() not in TABLES for match in matches):
                return None
            for match in matches:
                found.add(match)
            continue
        if not place.exists() or has_configs(place / "README.md"):
            return None
        if place.is_file() and place.suffix.lower() not in TABLES:
            return None
        found.add(place)
    return Seen(found.digest.hexdigest(), found.files, found.size)


class _Finger:
    """A walk through folders that keeps nothing but a digest."""

    def __init__(self, extensions: Sequence[str]):
        media = () if tuple(extensions) == TEXTS else extensions
        self.by_name = (*media, *(ending.upper() for ending in media))  # files of these endings are not read here
        self.digest, self.files, self.size = hashlib.blake2b(digest_size=16), 0, 0
        self._folders: set[tuple[int, int]] = set()

    def add(self, place: Path) -> None:
        """A folder, or a file. A folder of a split has its classes from the folders of others beside it."""
        if place.is_file():
            self._note([f"{place} {self._stamp(place.stat())}"])
            return
        self._walk(str(place))
        if is_split(place.name):
            beside = sorted(entry.path for entry in os.scandir(place.parent) if _counts_beside(entry))
            for other in beside:
                self._walk(other) if Path(other).is_dir() else self.add(Path(other))

    def _walk(self, top: str) -> None:
        folders = [top]
        while folders:
            here = folders.pop()
            try:
                status = Path(here).stat()
                if (status.st_dev, status.st_ino) in self._folders:
                    continue
                self._folders.add((status.st_dev, status.st_ino))
                names, inner = self._list(here)
            except OSError as error:
                names, inner = [f"closed: {error.strerror}"], []
            self._note([here, *sorted(names)])
            folders += sorted(inner, reverse=True)

    def _list(self, here: str) -> tuple[list[str], list[str]]:
        """Names of what counts in a folder, and its folders."""
        names, inner, by_name = [], [], self.by_name
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(by_name) and name[0] != "." and not entry.is_dir():  # of a million most
                    names.append(name)
                elif is_ignored(name) and name not in (RECORD, RESULTS):
                    continue
                elif entry.is_dir():
                    inner.append(entry.path)
                else:
                    names.append(f"{name} {self._stamp(entry.stat() if entry.is_file() else None)}")
        self.files += len(names)
        return names, inner

    def _stamp(self, status: os.stat_result | None) -> str:
        """Size and time of a file; of no file nothing."""
        if status is None:
            return "-"
        self.size += status.st_size
        return f"{status.st_size} {cache.settled_time(status.st_mtime_ns)}"

    def _note(self, lines: list[str]) -> None:
        self.digest.update("\0".join([*lines, ""]).encode(errors="surrogateescape"))


def _counts_beside(entry: os.DirEntry) -> bool:
    if entry.is_dir():
        return is_split(entry.name)
    return entry.name in ("metadata.csv", "metadata.jsonl")
