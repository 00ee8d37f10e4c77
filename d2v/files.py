"""Files that are written whole or not at all, and the record of what d2v wrote: nothing else is removed or replaced.

A folder that d2v fills holds `.d2v`, the names of the files that d2v wrote in it. Temporary names end in `.d2v-tmp`.
"""

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

RECORD = ".d2v"
RESULTS = ".d2v-results"  # names of single files: they may be made again, and are no part of the folder
LOCK = ".lock.d2v-tmp"
# What to do about what the system says of a place that is written to.
CURES = {
    errno.ENOSPC: "free some space there, and give the same command again: what was saved before is whole",
    errno.EDQUOT: "free some of your quota, and give the same command again: what was saved before is whole",
    errno.EFBIG: "files may not be so large there (ulimit -f, or the file system): raise that, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or change who may write there",
    errno.EPERM: "choose another place, or change who may write there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EISDIR: "a folder has that name: choose another one, or move it away",
}
UNRECORDED = f"d2v has no record of having written it ({RECORD} beside it): move it away, or choose another place"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it `path`, or something in it, is written.

    ValueError: the disk is full, or does not take it: one line with the path and what to do. Other errors stay.
    """
    try:
        yield
    except Exception as error:  # safetensors, tokenizers and torch have their own for what the system said
        line = why_not_written(error, path)
        if line is None:
            raise
        raise ValueError(line) from error


def why_not_written(error: Exception, path: Path | None = None) -> str | None:
    """One line with the path and what to do, of an error of the system while a file is written; None: of another."""
    place, reason = path or "a file", ""
    if isinstance(error, OSError):
        number, place = error.errno, error.filename or place
    elif said := re.search(r"os error (\d+)", str(error)):  # of a library in Rust
        number = int(said[1])
    elif re.search("PytorchStreamWriter|inline_container.*unexpected pos", str(error)):
        number, reason = errno.ENOSPC, "the disk takes no more"  # torch does not say why
    else:
        return None
    if number not in CURES:
        return None
    return f"cannot write {place}: {reason or os.strerror(number)}; {CURES[number]}"


def append(path: Path, line: str) -> None:
    """Adds a line to a file, whole or not at all. ValueError: see `writing`."""
    rest = (line + "\n").encode()
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.truncate(path, end)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder, in which one process at a time writes; the lock is the process's own, and goes however it ends.

    ValueError: another process has it, or the folder is a file.
    """
    with writing(folder):
        _check_is_no_file(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    with lock as file:
        try:
            _lock(file)
        except OSError:
            raise ValueError(f"another process is writing to {folder}; wait for it, or choose another place") from None
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _lock(file: IO[str]) -> None:
    """Of POSIX: it is no child's, so that a data loading process that outlives its parent keeps nothing."""
    if sys.platform != "win32":
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` at the end; after an error `path` is as it was. Makes the folder."""
    temporary = path.with_name(f".{path.name}.d2v-tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def open_to_others(place: Path) -> None:
    """Gives a file that safetensors wrote, or those in a folder, the mode of new files; only their owner can read them.

    What that mode is the system says of another new file: the umask and a folder's own rules make it.
    """
    for file in place.rglob("*.safetensors") if place.is_dir() else [place]:
        other = file.with_name(f".{file.name}.mode.d2v-tmp")
        with suppress(OSError):  # of file systems without modes
            other.touch()
            file.chmod(stat.S_IMODE(other.stat().st_mode))
        other.unlink(missing_ok=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to be filled that then takes the place of `folder`, whole or not at all.

    Files in `folder` that d2v did not write move into the new one. ValueError: it holds something, and no record.
    """
    with writing(folder):
        yield from _replaced(folder)


def _replaced(folder: Path) -> Iterator[Path]:
    check_folder(folder)
    draft, old = folder.with_name(f".{folder.name}.d2v-tmp"), folder.with_name(f".{folder.name}.old.d2v-tmp")
    _finish_replacing(folder, old)
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed: nobody but d2v writes there
    draft.mkdir(parents=True)
    try:
        yield draft
        open_to_others(draft)
        record(draft, files_in(draft))
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _finish_replacing(folder, old)


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder to be filled that then is `folder`, whole or not at all. ValueError: something is there already."""
    with writing(folder):
        _check_is_no_file(folder)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and would be filled: choose another place, or move it away")
        draft = folder.with_name(f".{folder.name}.d2v-tmp")
        shutil.rmtree(draft, ignore_errors=True)  # of a command that was killed: nobody but d2v writes there
        draft.mkdir(parents=True)
        try:
            yield draft
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _finish_replacing(folder: Path, old: Path) -> None:
    """`old` was replaced by `folder`: what d2v did not write moves there; `old` itself, if a kill left no `folder`.

    A name that both have gets `.kept`.
    """
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    for name in sorted(files_in(old) - recorded(old)):
        target = unused(folder / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(target)
    shutil.rmtree(old, ignore_errors=True)


def files_in(folder: Path) -> set[str]:
    """Paths of all files and links below a folder, relative to it, but for its record and lock."""
    names = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            names.add(path.relative_to(folder).as_posix())
    return names - {RECORD, LOCK}


def recorded(folder: Path, where: str = RECORD) -> set[str]:
    """The files that d2v wrote in a folder, as paths relative to it; none without a record that can be read."""
    try:
        return lying_in(folder, json.loads((folder / where).read_text())["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def is_whole(folder: Path) -> bool:
    """Whether d2v filled a folder, and all that it wrote is still there."""
    names = recorded(folder)
    return bool(names) and all((folder / name).is_file() for name in names)


def lying_in(folder: Path, names: Iterable[object]) -> set[str]:
    """Those of some names, read from a file, that are paths below a folder and lead out of it by no link."""
    inside = set()
    for name in names:
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            continue
        if not any((folder / parent).is_symlink() for parent in _parents(name)):
            inside.add(name)
    return inside


def _parents(name: str) -> list[Path]:
    """The folders that a relative path goes through, deepest first."""
    return list(Path(name).parents)[:-1]  # the last is "."


def record_results(paths: Iterable[Path]) -> None:
    """Notes single files that are about to be written (a table, an ONNX file), each in the folder where it will be."""
    for path in paths:
        record(path.parent, [path.name], RESULTS)


def record(folder: Path, names: Iterable[str], where: str = RECORD) -> None:
    """Adds files, as paths relative to a folder, to the list of what d2v wrote there. Makes the folder."""
    known, added = recorded(folder, where), set(names)
    if (folder / where).is_file() and added <= known:
        return
    with written(folder / where) as temporary:
        content = {"written by d2v": True, "files": sorted(known | added)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def check_folder(folder: Path) -> None:
    """ValueError: a folder that d2v would fill or replace holds something, and no record."""
    if folder.is_dir() and not (folder / RECORD).is_file() and files_in(folder):
        raise ValueError(f"{folder} exists, and {UNRECORDED.replace('beside', 'in')}")
    _check_is_no_file(folder)


def _check_is_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a folder would be written there")


def check_file(path: Path) -> None:
    """ValueError: a file that d2v would write is there, and in no record."""
    known = recorded(path.parent) | recorded(path.parent, RESULTS)
    if (path.exists() or path.is_symlink()) and path.name not in known:
        raise ValueError(f"{path} exists, and {UNRECORDED}")


def check_place(path: Path) -> None:
    """ValueError: nothing can be written there; work that ends in a file asks before it begins."""
    with writing(path):
        path.exists()
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(path))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, "", str(path))


def check_new(path: Path, overwrite: bool, elsewhere: str = "") -> None:
    """ValueError: `path` cannot be, or may not be replaced: `overwrite` is false, or d2v did not write it.

    `elsewhere`: what writes to another place.
    """
    check_place(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; run.overwrite=true replaces it{elsewhere and f', {elsewhere}'}")
    check_file(path)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes files, as paths relative to a folder, then their folders and itself, where empty without them."""
    names = list(names)
    for name in names:
        path = folder / name
        if path.is_symlink() or path.is_file():
            path.unlink()
    remove_empty_folders(folder, names)


def remove_folder(folder: Path) -> None:
    """Removes what d2v wrote in a folder that has a record, and the folder, if nothing else is in it."""
    if (folder / RECORD).is_file():
        remove(folder, [*recorded(folder), RECORD])


def remove_empty_folders(folder: Path, names: Iterable[str]) -> None:
    """Removes a folder, and those in it that files of some names were in, where they are empty."""
    inner = set()
    for name in names:
        inner.update(folder / parent for parent in _parents(name))
    for path in [*sorted(inner, reverse=True), folder]:
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def unused(path: Path) -> Path:
    """`path` if nothing is there, else with as many `.kept` behind it as it takes."""
    while path.exists() or path.is_symlink():
        path = path.with_name(f"{path.name}.kept")
    return path
