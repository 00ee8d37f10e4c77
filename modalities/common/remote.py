"""Data that lies elsewhere, by an address such as https:// or s3://: fetched whole into the cache, and read there.

An address names a file, a folder (one of http by its / at the end), a pattern, or files that are numbered as
webdataset writes it: shard-{000..099}.tar. What was fetched stays; later starts fetch what has changed.
"""

import contextlib
import glob
import json
import logging
import posixpath
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import fsspec

from d2v import cache, files

log = logging.getLogger(__name__)
Made = TypeVar("Made")
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://")
NUMBERED = re.compile(r"\{(\d+)\.\.(\d+)\}")
RECORD = "fetched.json"
TRIES, WAIT = 4, 2.0  # seconds before the second try; then twice as long each time
THREADS = 8  # files that are fetched at once
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")  # what file systems tell of a version
FINAL = (FileNotFoundError, PermissionError, ImportError, NotImplementedError)  # nothing that another try would mend


class There(NamedTuple):
    """A file where it comes from: its path there, its bytes if they are known, and what changes with its content."""

    path: str
    size: int | None
    stamp: str


def fetched(path: Any) -> Any:
    """A path, or a list of these, with the place in the cache for each address. ValueError: it cannot be fetched."""
    if isinstance(path, str) and ADDRESS.match(path):
        return str(cache.looked(("remote", path), lambda: _brought(path)))
    if isinstance(path, list | tuple):
        return [fetched(one) for one in path]
    return path


def _brought(address: str) -> Path:
    """The file or folder in the cache that holds what the address names."""
    folder = cache.place() / "remote" / cache.digest_of(address)
    target = folder / (re.sub(r"[^\w.-]", "_", posixpath.basename(ADDRESS.sub("", address).rstrip("/"))) or "data")
    with cache.alone(folder):
        try:
            system, found = _tried(lambda: _listing(address), address)
        except ValueError as error:
            if not _is_whole(folder, target):
                raise
            log.warning("%s; what was fetched before is read: %s", error, target)
            return target
        wanted = {target / name: there for name, there in found.items()}  # target / "" is target
        record = {str(file.relative_to(folder)): list(there) for file, there in wanted.items()}
        for name in _changed(folder, record):
            (folder / name).unlink(missing_ok=True)
        with files.written(folder / RECORD) as draft:
            draft.write_text(json.dumps(record))
        _fetch(system, {file: there for file, there in wanted.items() if not file.is_file()}, address)
    return target


def _listing(address: str) -> tuple[Any, dict[str, There]]:
    """The file system, and files by their names below the address; one that it names itself has the name ""."""
    numbered = NUMBERED.search(address)
    system, root = fsspec.core.url_to_fs(address if numbered is None else address[: numbered.start()])
    if numbered is not None:
        first, last = numbered.groups()
        names = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        paths = [system._strip_protocol(NUMBERED.sub(name, address, count=1)) for name in names]
        found = {posixpath.basename(path): system.info(path) for path in paths}
    elif glob.has_magic(root):
        base = posixpath.dirname(root[: re.search(r"[*?[]", root).start()] + "x")  # type: ignore[union-attr]
        found = {posixpath.relpath(path, base): info for path, info in system.glob(root, detail=True).items()}
    elif address.endswith("/") or (not address.startswith("http") and system.isdir(root)):
        # a server of http has no folders: to ask whether a file is one would fetch it
        found = {posixpath.relpath(path, root): info for path, info in system.find(root, detail=True).items()}
    else:
        found = {"": system.info(root)}
    found = {name: info for name, info in sorted(found.items()) if info.get("type") != "directory"}
    if not found:
        raise FileNotFoundError(root)
    for name in found:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise PermissionError(f"it names {name}, which lies outside of it")
    return system, {name: There(info["name"], info.get("size"), _stamp(info)) for name, info in found.items()}


def _stamp(info: dict[str, Any]) -> str:
    return " ".join(str(info[name]) for name in STAMPS if info.get(name))


def _changed(folder: Path, record: dict[str, Any]) -> Sequence[str]:
    """Files that were fetched before and are another one there by now."""
    return [name for name, there in _recorded(folder).items() if record.get(name) != there]


def _is_whole(folder: Path, target: Path) -> bool:
    """Whether all that was to be fetched is there."""
    names = _recorded(folder)
    return bool(names) and target.exists() and all((folder / name).is_file() for name in names)


def _recorded(folder: Path) -> dict[str, Any]:
    """What was to be fetched when that was last begun, by name; {}: nothing is known of that."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / RECORD).read_text())
    return {}


def _fetch(system: Any, wanted: dict[Path, There], address: str) -> None:
    """Each file whole, or not at all. ValueError: one cannot be had."""

    def fetch(file: Path) -> None:
        there = wanted[file]

        def get(draft: Path) -> None:
            system.get_file(there.path, str(draft))
            size = draft.stat().st_size
            if there.size is not None and size != there.size:
                raise ConnectionError(f"{size} of {there.size} bytes came")

        with files.written(file) as draft:
            _tried(lambda: get(draft), there.path if ADDRESS.match(there.path) else f"{address}: {there.path}")

    with ThreadPoolExecutor(THREADS) as pool, cache.progress(len(wanted), f"fetching {address}", "files") as bar:
        for _ in pool.map(fetch, wanted):
            bar.update()


def _tried(call: Callable[[], Made], what: str) -> Made:
    """What the call gives, by the last of some tries. ValueError: none succeeded, or none would."""
    for number in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:  # each file system has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                said = "there is no such file"  # file systems say its name alone
            if files.why_not_written(error):  # no room here, say
                raise
            if isinstance(error, (*FINAL, ValueError)):
                raise ValueError(f"data.path {what} cannot be fetched: {said}") from error
            if number == TRIES:
                raise ValueError(f"data.path {what} cannot be fetched, after {TRIES} tries: {said}") from error
            time.sleep(WAIT * 2 ** (number - 1))
    raise AssertionError
