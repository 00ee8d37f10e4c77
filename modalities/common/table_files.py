"""Tables that are text: csv, tsv, jsonl, json, fairseq's manifests. Of delimited text a cell is the string written."""

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from d2v.modalities.common.encodings import open_text
from d2v.modalities.common.tables import written

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
DELIMITERS = (",", "\t", ";", "|")  # of csv; the first of those that fit equally well
SAMPLE = 100  # rows that the delimiter is found by
CHUNK = 10_000  # rows that are in memory as Python's objects at a time

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may hold a book


def read(path: Path) -> pa.Table:
    """The table; of delimited text all columns are strings, and only an empty cell is missing.

    ValueError: no names of columns, or an odd row, with its line.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        table = _objects(path, whole=suffix == ".json")
        if not table.column_names:
            raise ValueError(f"{path} holds no JSON object with a name in it")
        return table
    if suffix == ".csv":
        return _delimited(path, _delimiter(path))
    manifest = _manifest(path)
    if manifest is not None:
        return manifest
    try:
        return _delimited(path, "\t")
    except ValueError as error:  # many programs write tabs and no quotes: there a quote is a character
        try:
            return _delimited(path, "\t", csv.QUOTE_NONE)
        except ValueError:
            raise error from None


def check_header(path: Path, names: Sequence[str], known: Iterable[str]) -> None:
    """ValueError: no name of a column is known, so that the first line may be data."""
    lower = {name.lower() for name in known}
    if not any(name.lower() in lower for name in names):
        first = next(iter(known))
        named = ", or name one of these, data.text=COLUMN" if first == "text" else ""
        raise ValueError(
            f"the first line of {path} is taken for names of columns, and none is known: {', '.join(names)[:200]}; "
            f"write names of columns there, one of them {first!r}{named}"
        )


# Delimited text.


def _delimiter(path: Path) -> str:
    """What divides the cells of the first rows most evenly, of what divides the first line; else a comma."""
    best, evenness = ",", (0.0, 1)
    for delimiter in DELIMITERS:
        try:
            rows = [cells for _, cells in itertools.islice(_rows(path, delimiter), SAMPLE)]
        except ValueError:
            continue
        if not rows or len(rows[0]) < 2:
            continue
        even = sum(len(cells) == len(rows[0]) for cells in rows) / len(rows)
        if (even, len(rows[0])) > evenness:
            best, evenness = delimiter, (even, len(rows[0]))
    return best


def _rows(path: Path, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, from 1, and its cells; blank lines are none. ValueError: a quote out of place."""
    with open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}: {error}; a cell that holds a quote is quoted whole, and its quotes are doubled"
            ) from None


def _delimited(path: Path, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> pa.Table:
    rows = _rows(path, delimiter, quoting)
    names = _names(path, next(rows, (1, []))[1])
    columns: list[list[str | None]] = [[] for _ in names]  # of strings alone: lists of rows keep the collector busy
    chunks: list[list[pa.Array]] = [[] for _ in names]
    for line, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells, the first line names {len(names)} columns; "
                f"quote a cell that holds {delimiter!r}"
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell or None)
        if len(columns[0]) == CHUNK:
            _move(columns, chunks)
    _move(columns, chunks)
    return pa.table([pa.chunked_array(parts, pa.string()) for parts in chunks], names=names)


def _move(columns: list[list[str | None]], chunks: list[list[pa.Array]]) -> None:
    """Adds the cells of each column to its chunks."""
    for column, parts in zip(columns, chunks, strict=True):
        parts.append(pa.array(column, pa.string()))
        column.clear()


def _names(path: Path, header: list[str]) -> list[str]:
    """Names of columns. ValueError: there are none, one of them twice, or the file is no text."""
    if not header:
        raise ValueError(f"{path} is empty; its first line names the columns")
    names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(header)]  # as pandas names an index
    if any("\0" in name for name in names):
        raise ValueError(f"{path} is no text: its first line holds zero bytes; save it as UTF-8")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the first line of {path} names the column {name!r} twice")
    return names


def _manifest(path: Path) -> pa.Table | None:
    """A manifest of fairseq, "file" and "frames": a folder, then lines of a path in it, a tab and a number of frames.

    None: it is none. ValueError: there is no such folder, or an odd line.
    """
    with open_text(path) as file:
        root, *first = file.readline().rstrip("\n").split("\t")
        second = file.readline().rstrip("\n").split("\t")
        if first or len(second) != 2 or not second[1].isdecimal():
            return None
        folder = path.parent / root
        if not folder.is_dir() and "/" not in root:  # a name of a column, then
            return None
        if not folder.is_dir():
            raise ValueError(f"{path}: its first line names the folder {root!r}, which does not exist")
        files, frames = [], []
        for line, text in enumerate(itertools.chain(["\t".join(second)], file), 2):
            if not text.strip():
                continue
            name, *number = text.rstrip("\n").split("\t")
            if len(number) != 1:
                raise ValueError(f"{path}, line {line} holds {1 + len(number)} cells; it must be a path and its frames")
            files.append(str(folder / name) if name else None)
            frames.append(number[0] or None)
    return pa.table({"file": pa.array(files, pa.string()), "frames": pa.array(frames, pa.string())})


# JSON.


def _objects(path: Path, *, whole: bool) -> pa.Table:
    """Rows that are JSON objects, a line each, or, if `whole`, a list of them or an object of columns."""
    if whole:
        with open_text(path) as file:
            text = file.read()
        try:
            return _of_value(path, json.loads(text))
        except (json.JSONDecodeError, RecursionError):  # lines of objects are called .json too
            pass
    columns: dict[str, list[pa.Array]] = {}
    rows, done = _lines(path), 0
    while chunk := list(itertools.islice(rows, CHUNK)):
        names = dict.fromkeys(itertools.chain(columns, *chunk))
        for name in names:
            before = columns.setdefault(name, [pa.nulls(done)] if done else [])
            before.append(_array([row.get(name) for row in chunk]))
        done += len(chunk)
    return pa.table({name: _united(parts) for name, parts in columns.items()})


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """ValueError: a line that is no JSON object, with its number."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'{path}, line {number} is no JSON object, as {{"text": ...}} is: {line.strip()[:60]}')
            yield row


def _of_value(path: Path, value: Any) -> pa.Table:
    """A list of objects, an object of columns, or an object that holds one list of objects."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
            value = lists[0]
        elif lists and len(lists) == len(value) and len({len(column) for column in lists}) == 1:
            return pa.table({name: _array(column) for name, column in value.items()})
        elif not lists:
            value = [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError(f"{path} holds neither a list of JSON objects nor columns of one length")
    names = dict.fromkeys(itertools.chain(*value))
    return pa.table({name: _array([row.get(name) for row in value]) for name in names})


def _array(values: list[Any]) -> pa.Array:
    """A column of one type; values of several are written out."""
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) < 2 or kinds == {int, float}:
        try:
            return pa.array(values, pa.float64() if len(kinds) == 2 else None)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # nested ones that differ, half a character
            pass
    return pa.array([None if value is None else written(value) for value in values], pa.string())


def _united(parts: list[pa.Array]) -> pa.ChunkedArray:
    """Parts of a column as one type."""
    kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
    if len(kinds) < 2:
        kind = kinds.pop() if kinds else pa.null()
        return pa.chunked_array([part.cast(kind) for part in parts], kind)
    return pa.chunked_array([_array(list(itertools.chain(*(part.to_pylist() for part in parts))))])
