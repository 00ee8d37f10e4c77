"""What is known of data and can be made again, kept for later starts and other processes, in a folder of the user.

It is $D2V_CACHE, or d2v in $XDG_CACHE_HOME or ~/.cache; d2v works without it, and slower. KIND/NAME/DIGEST/ holds what
was made of the data NAME (a path and settings) while it was as DIGEST says. It appears whole, by a rename, and is never
changed: others may have mapped it. What is not whole, or not of that name and digest, is made anew.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)
Made = TypeVar("Made")
VERSION = 3  # of what is kept; another one is made anew
ABOUT, LOCK, DRAFT = "about.json", ".lock.d2v-tmp", ".d2v-tmp"
LEAST = 256  # samples; of fewer nothing is kept
OLD = 14 * 24 * 3600  # seconds after which what is not used goes, once there is something newer of its name
CHECKED, PIECES = 1 << 26, 32  # bytes of a file whose checksum is of all of it; of how many MiB of a larger one it is
RACY = 2.0  # seconds: a file as young as that may still change without its time telling
_seen: ContextVar[dict | None] = ContextVar("seen", default=None)


class Entry(NamedTuple):
    """What is kept: of what kind, of which data and settings, and in which state of these."""

    kind: str
    name: str
    digest: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return place() / self.kind / self.name / self.digest


def place() -> Path:
    """The folder of all that is kept."""
    given, caches = os.environ.get("D2V_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(given or Path(caches or "~/.cache") / "d2v").expanduser().absolute()


def is_usable() -> bool:
    """Whether something can be kept."""
    try:
        place().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place()):
            return True
    except OSError:
        return False


def digest_of(*values: Any) -> str:
    """Of plain values, paths, arrays and bytes, 32 characters."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, np.ndarray):
            content: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8)  # no copy
        else:
            content = value if isinstance(value, bytes) else json.dumps(value, default=os.fspath).encode()
        found.update(f"{len(content)}:".encode())
        found.update(content)
    return found.hexdigest()


def settled(times: np.ndarray) -> np.ndarray:
    """Times of files, (n,) int64 ns; a file that is too young to be told from what it becomes has none of its own."""
    now = time.time_ns()
    return np.where(np.abs(times - now) < RACY * 1e9, now, times)


def settled_time(moment: int) -> int:
    """The same of one file."""
    now = time.time_ns()
    return now if abs(moment - now) < RACY * 1e9 else moment


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    """Within it what `looked` has found once is what it finds: the start of a run looks at its files once."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def looked(key: tuple, look: Callable[[], Made]) -> Made:
    """What `look` finds, or has found in this `one_look`."""
    seen = _seen.get()
    if seen is None:
        return look()
    if key not in seen:
        seen[key] = look()
    return seen[key]


def find(entry: Entry) -> Path | None:
    """The folder of what is kept; None: there is none, or it is damaged."""
    folder = entry.folder
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["version"] != VERSION or about["entry"] != list(entry):
            return None
        for name, mark in about["files"].items():
            if _mark(folder / name) != mark:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / ABOUT)  # it is in use
    return folder


def former(entry: Entry) -> Path | None:
    """What was kept last of the same name in another state of the data."""
    found = []
    with contextlib.suppress(OSError):
        for other in entry.folder.parent.iterdir():
            if other.name != entry.digest and (other / ABOUT).is_file():
                found.append(((other / ABOUT).stat().st_mtime, other.name))
    for _, name in sorted(found, reverse=True):
        if folder := find(entry._replace(digest=name)):
            return folder
    return None


@contextlib.contextmanager
def sought(entry: Entry) -> Iterator[Path | None]:
    """The folder of what is kept; None: there is none, and within no other process makes what is of that name, as far
    as the file system has locks."""
    folder = find(entry)
    if folder is not None:
        yield folder
        return
    with alone(entry.folder.parent):
        yield find(entry)  # another process may have made it meanwhile


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process makes what lies in the folder, as far as the file system has locks."""
    with contextlib.ExitStack() as stack:
        if sys.platform != "win32":
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((folder / LOCK).open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass  # nobody can write there, or there are no locks: what two make is equal
        yield


def keep(entry: Entry, write: Callable[[Path], object]) -> Path | None:
    """The folder that `write` fills; None: it cannot be kept, which is said once."""
    folder = entry.folder
    draft = folder.with_name(f".{folder.name}.{os.getpid()}{DRAFT}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        marks = {file.name: _mark(file) for file in draft.iterdir()}
        (draft / ABOUT).write_text(json.dumps({"version": VERSION, "entry": list(entry), "files": marks}))
        if folder.exists() and find(entry) is None:
            shutil.rmtree(folder)  # damaged
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same
                raise
        _forget(folder)
    except OSError as error:
        _say(
            f"what is known of the data is not kept in {place()} ({error.strerror or error}), and is made anew at "
            "each start; D2V_CACHE=FOLDER names another place"
        )
        return None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return find(entry)


def progress(total: int, what: str, unit: str) -> tqdm:
    """A bar of what takes long enough to be kept, shown after two seconds by one process of a machine."""
    return tqdm(total=total, desc=what, unit=f" {unit}", delay=2.0, mininterval=1, leave=False, disable=is_other())


def is_other() -> bool:
    """Whether another process of this machine says what is to be said."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


@functools.cache
def _say(line: str) -> None:
    if not is_other():
        log.warning(line)


def _forget(folder: Path) -> None:
    """Removes what is of the same name and has not been used for long, and drafts of commands that were killed."""
    now = time.time()
    for other in folder.parent.iterdir():
        if other == folder or not other.is_dir():
            continue
        with contextlib.suppress(OSError):
            is_draft = other.name.endswith(DRAFT)
            if now - (other if is_draft else other / ABOUT).stat().st_mtime > OLD:
                shutil.rmtree(other, ignore_errors=True)


def _mark(file: Path) -> list[int]:
    """Its size and a checksum: of all of it, or of pieces of a large file, the last one among them."""
    size, found = file.stat().st_size, 0
    pieces = range(0, size, 1 << 20)
    if size > CHECKED:
        pieces = np.linspace(0, size - (1 << 20), PIECES).astype(int).tolist()
    with file.open("rb") as opened:
        for start in pieces:
            opened.seek(start)
            found = zlib.crc32(opened.read(1 << 20), found)
    return [size, found]
