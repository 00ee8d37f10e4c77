"""The files below a folder: hidden ones, those of systems and what d2v wrote are none; each real folder counts once."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from d2v.files import RECORD, RESULTS, recorded
from d2v.modalities.common.kinds import is_of

# What Macs, Windows, cameras and network drives leave beside files
OF_SYSTEMS = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


class Found(NamedTuple):
    """Files below a folder, and what is said of the others."""

    files: list[Path]
    notes: list[str]


def alike(place: Path) -> str:
    """The end of an error about a place that does not exist: what is there of a name that is almost its own."""
    while not place.parent.is_dir():
        place = place.parent
    try:
        close = difflib.get_close_matches(place.name, [one.name for one in place.parent.iterdir()], n=1)
    except OSError:  # of a folder that cannot be listed
        return ""
    return f"; {place.parent / close[0]} is there" if close else ""


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is never data: it is hidden, or a system's."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def walk(folder: Path) -> Found:
    """Files at any depth, those of a folder before those of the folders in it, in sorted order.

    Links to folders are followed once every folder that is none has been seen.
    """
    files: list[Path] = []
    closed: list[str] = []  # folders that cannot be listed
    seen: set[tuple[int, int]] = set()
    links = [folder]
    while links:
        start = links.pop(0)
        for here, folders, names in os.walk(start, onerror=lambda error: closed.append(str(error))):
            status = Path(here).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_ignored(name))
            links += [Path(here, name) for name in folders if Path(here, name).is_symlink()]
            files += [Path(here, name) for name in _data(Path(here), names)]
    notes = [f"cannot be listed: {len(closed)}: {'; '.join(closed[:3])}"] if closed else []
    files, unnamed = with_names(files)
    return Found(sorted(files, key=lambda file: _place(file, folder)), notes + unnamed)


def below(file: Path, folder: Path) -> tuple[str, ...]:
    """The names from a folder to a file in it: what `relative_to` gives, in a fifth of its time."""
    return file.parts[len(folder.parts) :]


def holds(folder: Path, extensions: Sequence[str]) -> bool:
    """Whether a folder has a file of a kind, at any depth; stops at the first."""
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_ignored(name)]
        for name in names:
            if not is_ignored(name) and is_of(Path(here, name), extensions):
                return True
    return False


def has_configs(readme: Path) -> bool:
    """Whether a README begins with what the Hub reads: which files are which data set."""
    if not readme.is_file():
        return False
    return re.match(r"---\s*\n(.*\n)*?configs:", readme.read_text(encoding="utf-8", errors="replace")) is not None


def with_names(files: Iterable[Path]) -> Found:
    """Files whose names are text; tables of names cannot hold others."""
    good, bad = [], []
    for file in files:
        (good if is_text(str(file)) else bad).append(file)
    names = ", ".join(str(os.fsencode(file.name))[2:-1] for file in bad[:3])
    more = ", ..." if len(bad) > 3 else ""
    return Found(good, [f"skipped: {len(bad)} files whose names are not UTF-8 (rename {names}{more})"] if bad else [])


def is_text(name: str) -> bool:
    """Whether the name of a file is text."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps each odd byte as half a character
        return False
    return True


def _data(here: Path, names: list[str]) -> Iterator[str]:
    """The names that are no system's, and not in a record of what d2v wrote here."""
    written = set()
    for record in {RECORD, RESULTS} & set(names):
        written |= recorded(here, record)
    for name in names:
        if not is_ignored(name) and name not in written:
            yield name


def _place(file: Path, folder: Path) -> tuple[tuple[int, str], ...]:
    """Sorts files before folders."""
    *parents, name = below(file, folder)
    return (*((1, parent) for parent in parents), (0, name))
