"""Writes the images or recordings of a folder, table or data set as tar shards, as webdataset has them."""

import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets

from d2v import cache
from d2v.modalities.common import shards, tables
from d2v.modalities.common.beside import with_texts
from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.common.kinds import AUDIO, IMAGES, extension
from d2v.modalities.common.sources import notes, open_source, splits
from d2v.modalities.common.split_column import LEFT
from d2v.modalities.image.shrinking import shrunk
from d2v.modalities.speech.audio import WHOLE, Part
from d2v.modalities.speech.cutting import cut
from d2v.protocols import NoSplitError
from d2v.reading import named

KINDS = {"image": IMAGES, "audio": AUDIO}
PART = tables.TIMES  # columns that say which part of a recording a row is
BOX = ("xmin", "ymin", "xmax", "ymax", "bbox", "boxes", "objects")  # columns that are in pixels
AHEAD = 64  # samples that are in memory at once
BEGINS = {  # what a file without a name is known by
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"\x93NUMPY": ".npy",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff\xfb": ".mp3",
    b"BM": ".bmp",
}
WITHIN = {b"WEBP": ".webp", b"WAVE": ".wav"}  # of RIFF


def pack(source: str, folder: Path, size: int, shorter_side: int = 0) -> list[str]:
    """Fills a folder with shards of at most `size` bytes, or of one sample; says what they hold.

    A sample is its media as they are, its label in .cls, its text in .txt, which may lie beside its file, and its other
    columns in .json, in the order in which the source is read; a row that is a part of a recording becomes a recording,
    and an image with a larger `shorter_side`, if that is not 0, shrinks to it. What is unreadable is left out and told.

    ValueError: there are neither images nor sound, none can be read, one has no known format, or it cannot shrink.
    """
    kind, dataset, name = _opened(source)
    if shorter_side:
        _check_shrinking(source, kind, dataset)
    said = []
    for split in splits(dataset) or [name]:
        rows = dataset if split == name else with_texts(open_source(source, split, KINDS[kind], kind))
        number, unread = _write(rows, kind, source, split, folder, size, shorter_side)
        if len(unread) == len(rows):
            raise ValueError(f"none of {len(rows)} {kind} samples of {source} can be read: {named(unread)}")
        count = len(rows) - len(unread)
        said += [note for note in notes(rows) if LEFT in note]
        said.append(f"{split}: {count} {kind} sample{'s'[: count != 1]} in {number} shard{'s'[: number != 1]}")
        if unread:
            said.append(f"left out, cannot be read: {len(unread)}: {named(unread)}")
    return said


def _check_shrinking(source: str, kind: str, dataset: datasets.Dataset) -> None:
    """ValueError: sound, or columns that say where in an image something is."""
    if kind != "image":
        raise ValueError(f"shorter_side is of images, and {source} holds {kind}")
    boxes = [name for name in BOX if name in dataset.column_names]
    if boxes:
        raise ValueError(
            f"shorter_side would leave the columns {', '.join(boxes)} of {source} in pixels of the larger image: "
            "leave it out"
        )


def _opened(source: str) -> tuple[str, datasets.Dataset, str]:
    """Which kind of media the source has, the rows of a split, and its name. ValueError: none."""
    said = []
    for kind, extensions in KINDS.items():
        try:
            rows = with_texts(open_source(source, "train", extensions, kind))
            if _is_of(rows, kind):
                return kind, rows, "train"
            said.append(f"{source} has no {kind} files")
        except NoSplitError as error:
            raise ValueError(f"{error}; what is packed needs a split train") from error
        except ValueError as error:
            said.append(str(error))
    raise ValueError("; ".join(dict.fromkeys(said)))


def _is_of(rows: datasets.Dataset, kind: str) -> bool:
    """Whether the first of the rows whose format is known, by name or content, is media of this kind."""
    media = tables.media_column(rows, kind)
    for cells in rows:
        cell = cells[media]
        ending = extension(Path((cell.get("path") if isinstance(cell, dict) else cell) or ""))
        try:
            ending = ending if ending in IMAGES + AUDIO else _media(cell, "", WHOLE)[1]
        except ValueError:
            continue
        return ending in KINDS[kind]
    return True


def _write(
    rows: datasets.Dataset, kind: str, source: str, split: str, folder: Path, size: int, shorter_side: int
) -> tuple[int, dict[str, str]]:
    """Writes the shards of a split; how many, and what cannot be read."""
    media = tables.media_column(rows, kind)
    names = tables.identifiers(rows, source, split)
    parts = tables.segments(rows) if kind == "audio" else None

    def read(row: int, cells: dict[str, Any]) -> tuple[bytes, str] | UnreadableError:
        part = WHOLE if parts is None else Part(*parts[row].tolist())
        try:
            return _media(cells[media], names[row], part, shorter_side)
        except UnreadableError as error:
            return error

    apart = (media, "file", "label", "text", *(PART if parts is not None else ()))
    left = [name for name in tables.column_names(rows) if name not in apart]
    taken: set[str] = set()
    unread: dict[str, str] = {}
    number, shard = 0, None
    try:
        for row, cells, found in _read_ahead(rows, read, split):
            if isinstance(found, UnreadableError):
                unread[names[row]] = str(found)
                continue
            content, ending = found
            members = [(ending, content), *_fields(rows, cells, left)]
            if shard is None or shard.offset + sum(len(one) for _, one in members) > size:
                if shard is not None:
                    shard.close()
                shard = tarfile.open(folder / f"{split}-{number:06d}{shards.TAR}", "w")  # noqa: SIM115
                number += 1
            key = _key(names[row], taken)
            for after, one in members:
                about = tarfile.TarInfo(f"{key}{after}")
                about.size = len(one)
                shard.addfile(about, io.BytesIO(one))
    finally:
        if shard is not None:
            shard.close()
    return number, unread


def _read_ahead(
    rows: datasets.Dataset, read: Callable[[int, dict[str, Any]], Any], split: str
) -> Iterator[tuple[int, dict[str, Any], Any]]:
    """Numbers, cells and what `read` makes of them, in their order; a few of them at once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, cache.progress(len(rows), f"packing {split}", "samples") as bar:
        for start in range(0, len(rows), AHEAD):
            numbers = range(start, min(start + AHEAD, len(rows)))
            cells = [rows[row] for row in numbers]
            yield from zip(numbers, cells, pool.map(read, numbers, cells), strict=True)
            bar.update(len(numbers))


def _media(cell: Any, name: str, part: Part, shorter_side: int = 0) -> tuple[bytes, str]:
    """The bytes of a sample and the ending of its format. UnreadableError: they cannot be read. ValueError: no format.

    `part`: of a recording; `shorter_side`: of an image, 0 as it is.
    """
    if isinstance(cell, dict) and cell.get("offset") is not None:
        content, place = shards.read(cell), name
    elif isinstance(cell, dict) and cell.get("bytes"):
        content, place = cell["bytes"], cell.get("path") or name
    else:
        place = (cell.get("path") if isinstance(cell, dict) else cell) or ""
        try:
            content = Path(place).read_bytes()
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
    if not content:
        raise UnreadableError("no bytes")
    if not (part.start == 0 and math.isnan(part.stop)):
        content, place = cut(content, part), ""
    smaller = shrunk(content, shorter_side) if shorter_side else None
    if smaller is not None:
        content, place = smaller, ""
    ending = extension(Path(place))
    if ending not in IMAGES + AUDIO:
        ending = next((ending for begin, ending in BEGINS.items() if content.startswith(begin)), "")
        ending = ending or WITHIN.get(content[8:12], "")
    if not ending:
        raise ValueError(f"{name} is of no known format: give its file an extension")
    return content, ending


def _fields(rows: datasets.Dataset, cells: dict[str, Any], left: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What describes a sample, as members of the tar file."""
    label = cells.get("label")
    if label is not None:
        feature = rows.features["label"]
        yield (
            f".{shards.LABEL}",
            str(feature.int2str(label) if isinstance(feature, datasets.ClassLabel) else label).encode(),
        )
    if isinstance(cells.get("text"), str):
        yield f".{shards.TEXT}", cells["text"].encode()
    more = {name: cells[name] for name in left if cells[name] is not None}
    if more:
        yield f".{shards.MORE}", json.dumps(more, ensure_ascii=False, default=str).encode()


def _key(name: str, taken: set[str]) -> str:
    """A name without a dot after its last slash, which begins no other sample."""
    folder, _, last = name.lstrip("/").replace(os.sep, "/").rpartition("/")
    stem = Path(last).stem if extension(Path(last)) in IMAGES + AUDIO else last
    stem = stem.replace(".", "_").replace(":", "-")
    plain = key = f"{folder}/{stem}" if folder else stem
    number = 1
    while key in taken:
        number += 1
        key = f"{plain}_{number}"
    taken.add(key)
    return key
