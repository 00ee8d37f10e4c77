"""Writes the images or recordings of a folder, table or data set as tar shards, as webdataset has them."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from d2v.modalities.common import shards, tables
from d2v.modalities.common.kinds import AUDIO, IMAGES, extension
from d2v.modalities.common.sources import open_source, splits
from d2v.protocols import NoSplitError

KINDS = {"image": IMAGES, "audio": AUDIO}
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


def pack(source: str, folder: Path, size: int) -> list[str]:
    """Fills a folder with shards of at most `size` bytes, or of one sample; says what they hold.

    A sample is its media as they are, its label in .cls, its text in .txt and its other columns in .json, in the order
    in which the source is read. ValueError: there are neither images nor sound, or a sample has no known format.
    """
    kind, dataset, name = _opened(source)
    said = []
    for split in splits(dataset) or [name]:
        rows = dataset if split == name else open_source(source, split, KINDS[kind], kind)
        numbers = _write(rows, kind, source, split, folder, size)
        said.append(f"{split}: {len(rows)} {kind} samples in {numbers} shards")
    return said


def _opened(source: str) -> tuple[str, datasets.Dataset, str]:
    """Which kind of media the source has, the rows of a split, and its name. ValueError: none."""
    said = []
    for kind, extensions in KINDS.items():
        try:
            return kind, open_source(source, "train", extensions, kind), "train"
        except NoSplitError as error:
            raise ValueError(f"{error}; what is packed needs a split train") from error
        except ValueError as error:
            said.append(str(error))
    raise ValueError("; ".join(dict.fromkeys(said)))


def _write(rows: datasets.Dataset, kind: str, source: str, split: str, folder: Path, size: int) -> int:
    """Writes the shards of a split; returns how many."""
    media = tables.media_column(rows, kind)
    names = tables.identifiers(rows, source, split)
    left = [name for name in tables.column_names(rows) if name not in (media, "file", "label", "text")]
    taken: set[str] = set()
    number, shard = 0, None
    try:
        for row in range(len(rows)):
            cells = rows[row]
            content, ending = _media(cells[media], names[row])
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
    return number


def _media(cell: Any, name: str) -> tuple[bytes, str]:
    """The bytes of a sample and the ending of its format. ValueError: it has none, or cannot be read."""
    if isinstance(cell, dict) and cell.get("offset") is not None:
        content, place = shards.read(cell), name
    elif isinstance(cell, dict) and cell.get("bytes"):
        content, place = cell["bytes"], cell.get("path") or name
    else:
        place = (cell.get("path") if isinstance(cell, dict) else cell) or ""
        try:
            content = Path(place).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
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
