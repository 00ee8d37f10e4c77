"""What a look at each file of the data found, kept by size and time of the file: only changed ones are looked at again.

n rows of the data, k numbers that a look gives.
"""

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d2v import cache
from d2v.modalities.common import shards
from d2v.modalities.common.file_states import NONE, states, states_of_all
from d2v.modalities.common.mapped import mapped
from d2v.modalities.common.tables import column_of, holds_media, is_string

CHUNK = 4096  # rows that are in memory as Python's objects, or in flight, at once
HEADERS = 2  # threads that read headers: they hold Python's lock, for which four wait twice as long as they read
TURN = 64  # of these, how many a thread is given at a time: to hand over each by itself costs as much as a header
FEW = 8  # rows that are looked at first, to see how long a look takes
# Seconds: decoders leave Python's lock, but what is around them does not. Two threads looked at CIFAR-10 (0.4 ms each)
# for 50 s, one for 24; at the clips of FSDD (0.7 ms) for 6 s and 2; at photographs of 5 ms they are as fast or faster.
QUICK = 0.002
NUMBERS, FAULTS = "numbers.npy", "faults.json"
IN_SHARD = re.compile(r":\d+$")  # what follows the name of a shard: the place in it
Look = Callable[[int], Any]  # of the number of a row: numbers, or why it cannot be read


class Scan(NamedTuple):
    """What is known of each row."""

    numbers: np.ndarray  # (n, k) int64, NONE where a row cannot be read
    faults: dict[int, str]  # why, by row
    digest: str | None  # changes with the files; None: nobody knows when they do


class Places(NamedTuple):
    """Where the media of some rows lie, and the state of the files there."""

    names: list[str]
    sizes: np.ndarray  # (rows,) bytes
    times: np.ndarray  # (rows,) ns


def scan(
    media: datasets.Dataset,
    settings: list[Any] | None,
    width: int,
    look: Look,
    more: np.ndarray | None = None,
    *,
    decodes: bool,
) -> Scan:
    """What `look` says of each row, `width` numbers or why it cannot be read; `media` has the one column that it reads.

    `settings`: the data's name, and what the numbers depend on beside files; None: nothing is kept. `more`, (n, any):
    that of each row. `decodes`: `look` decodes, so that a thread of each core helps where it takes long; else it reads
    headers.
    """
    if settings is None or len(media) < cache.LEAST or not _lies_in_files(media):
        return _look_at(np.arange(len(media)), _empty(len(media), width), look, decodes)
    settings = [*settings, [] if more is None else cache.digest_of(more)]
    name = cache.digest_of(settings)
    entry = cache.Entry("scans", name, cache.looked(("times", name), lambda: _digest(media)))
    with cache.sought(entry) as folder:
        if folder is None:
            places, digest = _joined(media)
            entry = entry._replace(digest=digest)
            known = _empty(len(media), width)
            rows = _unknown(places, known, cache.former(entry) if more is None else None)
            found = _look_at(rows, known, look, decodes)._replace(digest=entry.digest)
            folder = cache.keep(entry, partial(_write, places, found))
            if folder is None:
                return found
    kept = json.loads((folder / FAULTS).read_text())
    known = Scan(mapped(folder / NUMBERS), {row: why for row, why, _ in kept}, entry.digest)
    closed = [row for row, _, opens in kept if not opens]
    if not closed:
        return known
    for row in closed:
        del known.faults[row]
    again = known._replace(numbers=np.array(known.numbers))
    return _look_at(np.array(closed), again, look, decodes)._replace(digest=entry.digest)


def _empty(rows: int, width: int) -> Scan:
    return Scan(np.full((rows, width), NONE, dtype=np.int64), {}, None)


def _look_at(rows: np.ndarray, known: Scan, look: Look, decodes: bool) -> Scan:
    """What was known, and what is found in `rows`; so many are in flight as are in memory."""
    numbers, faults = known.numbers, dict(known.faults)
    with cache.progress(len(rows), "looking at the data", "files") as bar:
        few = np.unique(np.linspace(0, len(rows) - 1, FEW).astype(int)) if len(rows) else []  # spread over all
        first, seconds = _timed(look, rows[few].tolist())
        with ThreadPoolExecutor(_threads(seconds) if decodes else HEADERS) as pool:
            for row, found in itertools.chain(first, _looks(pool, look, np.delete(rows, few))):
                if isinstance(found, str):
                    faults[row] = found
                else:
                    numbers[row] = found
                bar.update()
    return Scan(numbers, dict(sorted(faults.items())), None)


def _timed(look: Look, rows: list[int]) -> tuple[list[tuple[int, Any]], list[float]]:
    """Rows and what was found, and the seconds that each look took."""
    found, seconds = [], []
    for row in rows:
        start = time.perf_counter()
        found.append((row, look(row)))
        seconds.append(time.perf_counter() - start)
    return found, seconds


def _threads(seconds: list[float]) -> int:
    """How many decode, by what the first looks took: one where they would wait for Python's lock, else one a core."""
    return 1 if not seconds or median(seconds) < QUICK else os.cpu_count() or HEADERS


def _looks(pool: ThreadPoolExecutor, look: Look, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Rows, and what was found, by several threads."""
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK].tolist()
        turns = [some[first : first + TURN] for first in range(0, len(some), TURN)]
        for turn, looks in zip(turns, pool.map(partial(_look_at_each, look), turns), strict=True):
            yield from zip(turn, looks, strict=True)


def _look_at_each(look: Look, rows: list[int]) -> list[Any]:
    return [look(row) for row in rows]


# The state of files.


def _lies_in_files(media: datasets.Dataset) -> bool:
    """Whether cells name files, or places in them, and hold no media."""
    (name,) = media.column_names
    if is_string(media.features[name]):
        return True
    kind = media.features.arrow_schema.field(name).type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if "path" not in fields:
        return False
    return shards.is_place(kind) or not any(holds_media(media, name))


def _places(media: datasets.Dataset) -> Iterator[Places]:
    """Of all rows, a chunk at a time."""
    (name,) = media.column_names
    column = column_of(media, name)
    if shards.is_place(column.type):
        yield from _in_shards(column)
        return
    for names, (sizes, times) in states_of_all(_paths(column), len(column)):
        yield _of_chunk(names, sizes, times)


def _cells(column: pa.ChunkedArray) -> Iterator[list]:
    """A chunk at a time."""
    for start in range(0, len(column), CHUNK):
        yield column.slice(start, CHUNK).to_pylist()


def _paths(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """Those that cells are or hold, a chunk at a time; "" where there is none."""
    is_path = pa.types.is_string(column.type)
    for cells in _cells(column):
        paths = cells if is_path else [cell and cell["path"] for cell in cells]
        yield [path or "" for path in paths]


def _in_shards(column: pa.ChunkedArray) -> Iterator[Places]:
    """Of cells that name places in shards: the state of each is its shard's, which is asked once."""
    of_shards: dict[str, tuple[int, int]] = {}
    for cells in _cells(column):
        new = sorted({cell["path"] or "" for cell in cells} - {*of_shards})
        of_shards |= dict(zip(new, zip(*states(new), strict=True), strict=True))
        found = [of_shards[cell["path"] or ""] for cell in cells]
        names = [cell["path"] or "" if cell["offset"] is None else f"{cell['path']}:{cell['offset']}" for cell in cells]
        yield _of_chunk(names, [size for size, _ in found], [moment for _, moment in found])


def _of_chunk(names: list[str], sizes: list[int], times: list[int]) -> Places:
    return Places(names, np.array(sizes, dtype=np.int64), cache.settled(np.array(times, dtype=np.int64)))


def _digest(media: datasets.Dataset) -> str:
    found = hashlib.blake2b(digest_size=16)
    for some in _places(media):
        _count(found, some)
    return found.hexdigest()


def _count(found: Any, some: Places) -> None:
    found.update("\0".join(some.names).encode(errors="surrogatepass"))
    found.update(some.sizes.tobytes() + some.times.tobytes())


def _joined(media: datasets.Dataset) -> tuple[tuple[pa.Array, np.ndarray, np.ndarray], str]:
    """Names, sizes and times of all rows, and their `_digest`: each file is asked once."""
    found = hashlib.blake2b(digest_size=16)
    names, sizes, times = [], [], []
    for some in _places(media):
        _count(found, some)
        names.append(pa.array(some.names, pa.large_string()))
        sizes.append(some.sizes)
        times.append(some.times)
    return (pa.concat_arrays(names), np.concatenate(sizes), np.concatenate(times)), found.hexdigest()


# What is kept.


def _write(places: tuple[pa.Array, np.ndarray, np.ndarray], found: Scan, folder: Path) -> None:
    names, sizes, times = places
    np.save(folder / NUMBERS, found.numbers)
    np.save(folder / "sizes.npy", sizes)
    np.save(folder / "times.npy", times)
    with pa.OSFile(str(folder / "names.arrow"), "wb") as file:
        table = pa.table({"name": names})
        with pa.ipc.new_file(file, table.schema) as stream:
            stream.write_table(table)
    faults = [(row, why, _opens(names[row].as_py())) for row, why in found.faults.items()]
    (folder / FAULTS).write_text(json.dumps(faults))


def _opens(name: str) -> bool:
    """Whether a file opens, so that a fault is its own; else it may pass, without its size or time being others."""
    try:
        with Path(IN_SHARD.sub("", name)).open("rb"):
            return True
    except (OSError, ValueError):
        return False


def _unknown(places: tuple[pa.Array, np.ndarray, np.ndarray], known: Scan, folder: Path | None) -> np.ndarray:
    """The rows that must be looked at; fills `known` with what `folder` knows of the others."""
    names, sizes, times = places
    if folder is None:
        return np.arange(len(sizes))
    with pa.memory_map(str(folder / "names.arrow")) as file:
        before = pa.ipc.open_file(file).read_all().column("name")
        found = pc.index_in(names, value_set=before)
    old = np.asarray(found.fill_null(0))
    same = np.asarray(found.is_valid()) & (sizes != NONE)
    same &= (mapped(folder / "sizes.npy")[old] == sizes) & (mapped(folder / "times.npy")[old] == times)
    known.numbers[same] = mapped(folder / NUMBERS)[old[same]]
    faults = {row: why for row, why, opens in json.loads((folder / FAULTS).read_text()) if opens}
    for row in np.flatnonzero(same & (known.numbers[:, 0] == NONE)).tolist():
        same[row] = old[row] in faults
        if same[row]:
            known.faults[row] = faults[old[row]]
    return np.flatnonzero(~same)
