"""Shards, tar files as webdataset has them and parquet files, whose media stay where they are: a cell says where.

Of a tar file the members of one name up to its first dot are a sample: a.jpg, a.cls, a.txt and a.json are an image, its
label, its text and further columns.
"""

import functools
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.common.noted import with_notes
from d2v.modalities.common.tables import written

# Of a tar file its bytes; of a parquet file `size` is IN_TABLE, and `offset` the number of a row, in `column`.
PLACE = {
    "path": datasets.Value("string"),
    "offset": datasets.Value("int64"),
    "size": datasets.Value("int64"),
    "column": datasets.Value("string"),
}
IN_TABLE = -1
NUMBER = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?(\.tar|\.parquet)$")
LABEL, TEXT, MORE = "cls", "txt", "json"
TAR = ".tar"
GROUPS = 2  # groups of rows of parquet that stay in memory
HEAVY = 4_000_000  # bytes of a group, from which reading a row of it takes longer than decoding an image
_lock = threading.Lock()


def type_of(feature: dict[str, Any]) -> pa.DataType:
    """How cells with such fields are stored."""
    return pa.struct([(field.name, field.type) for field in datasets.Features(feature).arrow_schema])


def is_place(kind: pa.DataType) -> bool:
    """Whether cells of this type say where in a shard media lie."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {*PLACE}


def read(cell: dict[str, Any]) -> bytes:
    """The media at a place. UnreadableError: the shard is gone, or cut."""
    path, offset, size = cell["path"], cell["offset"], cell["size"]
    try:
        if size == IN_TABLE:
            with _lock:
                return _of_table(path, cell["column"], offset)
        file = _opened(path)  # named here, as another thread may take its place in what is kept open
        content = os.pread(file.fileno(), size, offset)
    except (OSError, pa.ArrowException) as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from error
    if len(content) < size:
        raise UnreadableError(f"{path} is cut: it ends within a sample")
    return content


@functools.lru_cache(maxsize=64)
def _opened(path: str) -> Any:
    return Path(path).open("rb", buffering=0)


@functools.lru_cache(maxsize=64)
def _table(path: str) -> tuple[pq.ParquetFile, list[int]]:
    """A parquet file, and where each group of its rows begins."""
    file = pq.ParquetFile(path, memory_map=True)
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts


@functools.lru_cache(maxsize=GROUPS)
def _group(path: str, column: str, group: int) -> pa.ChunkedArray:
    table = _table(path)[0].read_row_group(group, columns=[f"{column}.bytes"])
    return pa.chunked_array([chunk.field("bytes") for chunk in table.column(column).chunks])


def _of_table(path: str, column: str, row: int) -> bytes:
    starts = _table(path)[1]
    group = next(number for number, start in enumerate(starts) if start > row) - 1
    return _group(path, column, group)[row - starts[group]].as_py()


def check_complete(files: Sequence[Path]) -> None:
    """ValueError: the numbers of shards in a folder have gaps, or are fewer than their names say."""
    found: dict[tuple[Path, str, str, str], set[int]] = {}
    padded = set()  # 000000, as shards are named, of which two may be all; two years are not
    for file in files:
        if match := NUMBER.fullmatch(file.name):
            before, number, total, ending = match.groups()
            key = file.parent, before, total or "", ending
            found.setdefault(key, set()).add(int(number))
            padded |= {key} if number.startswith("00") and ending == TAR else set()
    for (folder, before, total, ending), numbers in found.items():
        wanted = set(range(int(total)) if total else range(min(numbers), max(numbers) + 1))
        missing = sorted(wanted - numbers)
        if missing and (total or len(numbers) > 2 or ((folder, before, total, ending) in padded and 0 in numbers)):
            pattern = f"{folder / before}*{ending}"
            raise ValueError(
                f"{len(missing)} of {len(wanted)} shards {pattern} are missing, the first is number {missing[0]}: "
                f"bring them back, or read those that are there by data.path='{pattern}'"
            )


# Tar files.


def of_tars(files: Sequence[Path], extensions: Sequence[str], kind: str) -> datasets.Dataset:
    """The samples of tar files: `kind`, "file", their names, and "label", "text" and what their json says.

    ValueError: a file that is cut or no tar file, or none that has such samples.
    """
    parts, further = [], list[str]()
    for file in files:
        rows = _samples(file, extensions, kind, further)  # of one shard at a time
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        places = {kind: pa.array(columns.pop(kind), type_of(PLACE))} if kind != "text" and rows else {}
        parts.append(pa.table({**places, **{name: _column(cells) for name, cells in columns.items()}}))
    parts = [part for part in parts if len(part)]
    if not parts:
        listed = ", ".join(file.name for file in files[:3])
        raise ValueError(f"data.path: no sample of {listed} has {kind}: files that end in {' '.join(extensions)}")
    for name in dict.fromkeys(name for part in parts for name in part.column_names if name != kind):
        if not _fit([part.column(name).type for part in parts if name in part.column_names]):
            parts = [_as_written(part, name) for part in parts]
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"data.path: the json of shards does not fit together: {error}") from error
    dataset = datasets.Dataset(_with_numbers(table))
    some = f"{', '.join(further[:3])}{', ...' if len(further) > 3 else ''}"
    return with_notes(
        dataset, [f"not read: {len(further)} further {kind} members of samples: {some}"] * bool(further), []
    )


def _column(cells: list[Any]) -> pa.Array:
    """Of cells of several types what is written."""
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if cell is None else written(cell) for cell in cells])


def _fit(kinds: Sequence[pa.DataType]) -> bool:
    """Whether columns of these types can become one."""
    try:
        pa.unify_schemas([pa.schema([("x", kind)]) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_written(part: pa.Table, name: str) -> pa.Table:
    if name not in part.column_names or pa.types.is_string(part.column(name).type):
        return part
    cells = [None if cell is None else written(cell) for cell in part.column(name).to_pylist()]
    return part.set_column(part.column_names.index(name), name, pa.array(cells, pa.string()))


def _samples(file: Path, extensions: Sequence[str], kind: str, further: list[str]) -> list[dict[str, Any]]:
    """A row for each sample of a tar file that has media of the kind, in the order in which they begin.

    Members of a sample need not follow one another; a member that comes twice begins another sample, as where tar files
    were joined. `further` hears of media of the kind beside those that are read.
    """
    rows = list[dict[str, Any]]()
    known = dict[tuple[str, str], tuple[dict[str, Any], set[str]]]()  # by folder and stem: its row, and endings so far
    for member, content in _members(file, kind):
        path = member.name.removeprefix("./")
        folder, _, name = path.rpartition("/")
        stem, _, ending = name.partition(".")
        key = folder, stem
        if key not in known or ending in known[key][1]:
            known[key] = {}, set()
            rows.append(known[key][0])
        row, endings = known[key]
        endings.add(ending)
        ending = ending.lower()
        if content is None and f".{ending}" in extensions:
            if kind in row:
                further.append(path)
                continue
            row[kind] = {"path": str(file), "offset": member.offset_data, "size": member.size, "column": None}
            row["file"] = path
        elif content is not None:
            if kind == "text" and ending == TEXT:
                row["file"] = path
            _describe(row, ending, content, f"{file}: {member.name}", kind)
    return [row for row in rows if kind in row]


def _members(file: Path, kind: str) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The files in a tar file, with the content of those that hold text. ValueError: it is cut, or none."""
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                if member.isfile():
                    is_text = member.name.lower().endswith((f".{LABEL}", f".{TEXT}", f".{MORE}"))
                    found = shard.extractfile(member) if is_text else None
                    yield member, found.read() if found else None
            end = shard.offset
        with file.open("rb") as opened:
            opened.seek(end)
            if opened.read(512) != bytes(512):
                raise tarfile.ReadError("no mark of its end")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"data.path: {file} is cut, or no tar file ({error}): fetch it again") from error


def _describe(row: dict[str, Any], ending: str, content: bytes, where: str, kind: str) -> None:
    """Columns that a member with text gives; what has a member of its own comes before what a JSON says of it.

    ValueError: it is no text, or no JSON object.
    """
    try:
        if ending == LABEL:
            row["label"] = content.decode().strip()
        elif ending == TEXT:
            row["text"] = content.decode()
        elif ending == MORE:
            found = json.loads(content.decode())
            for name, value in found.items() if isinstance(found, dict) else ():
                if name not in (kind, "file"):
                    row.setdefault(name, value)
    except ValueError as error:
        raise ValueError(f"data.path: {where} cannot be read: {error}") from error


def _with_numbers(table: pa.Table) -> pa.Table:
    """Labels that are all whole numbers become such."""
    if "label" not in table.column_names or not pa.types.is_string(table.column("label").type):
        return table
    label = table.column("label")
    if not pc.all(pc.match_substring_regex(label, r"^-?\d+$"), skip_nulls=False).as_py():
        return table
    return table.set_column(table.column_names.index("label"), "label", label.cast(pa.int64()))


# Parquet.


def of_tables(files: Sequence[Path]) -> datasets.Dataset | None:
    """The rows of parquet files whose media, all of them bytes, stay there; None: these are no such files.

    ValueError: one is cut, or no parquet file.
    """
    opened = []
    for file in files:
        try:
            opened.append(pq.ParquetFile(file, memory_map=True))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"data.path: {file} cannot be read: it is cut, or no parquet file ({reason})") from error
    schema = opened[0].schema_arrow
    if any(not one.schema_arrow.equals(schema) for one in opened):
        return None
    features = datasets.Features.from_arrow_schema(schema)
    media = [name for name in schema.names if all(_holds_bytes(one, name) for one in opened)]
    if not media:
        return None
    others = [name for name in schema.names if name not in media]
    columns: dict[str, list[pa.Array]] = {name: [] for name in schema.names}
    for file, one in zip(files, opened, strict=True):
        rows = one.metadata.num_rows
        table = one.read(columns=others)
        for name in others:
            columns[name] += table.column(name).chunks
        for name in media:
            place = [pa.repeat(str(file), rows), pa.arange(0, rows), pa.repeat(IN_TABLE, rows), pa.repeat(name, rows)]
            columns[name].append(pa.StructArray.from_arrays(place, names=[*PLACE]))
    for name in media:
        features[name] = PLACE
    schema = datasets.Features({name: features[name] for name in columns}).arrow_schema
    arrays = [pa.chunked_array(columns[field.name], field.type) for field in schema]
    return datasets.Dataset(pa.Table.from_arrays(arrays, schema=schema))


def slow_groups(files: Sequence[Path]) -> list[str]:
    """A line on parquet files of which much is read for each row that is asked for, or none."""
    groups, rows, size = 0, 0, 0
    for file in files:
        metadata = pq.read_metadata(file)
        groups, rows = groups + metadata.num_row_groups, rows + metadata.num_rows
        size += sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if groups <= GROUPS or size < HEAVY * groups:
        return []
    return [
        f"parquet is read a group of rows at a time, here {rows // groups} rows and {size / groups / 1e6:.0f} MB for "
        "each sample: `d2v data pack SOURCE OUT` writes shards of which a sample is read alone"
    ]


def _holds_bytes(file: pq.ParquetFile, name: str) -> bool:
    """Whether every cell of a column has "bytes", by what the file says of itself."""
    kind = file.schema_arrow.field(name).type
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return False
    places = [place for place in range(file.metadata.num_columns) if file.schema.column(place).path == f"{name}.bytes"]
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(places[0]).statistics
        if statistics is None or statistics.null_count is None or statistics.null_count:
            return False
    return bool(places) and file.metadata.num_rows > 0
