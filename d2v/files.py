"""Files that are written whole or not at all, and the record of what d2v wrote: nothing else is ever removed or replaced.

A folder that d2v fills holds `.d2v`, the names of the files that d2v wrote in it. Temporary names end in `.d2v-tmp`.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD = ".d2v"
UNRECORDED = f"d2v has no record of having written it ({RECORD} beside it): move it away, or choose another place"


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` at the end; after an error `path` is as it was. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to be filled that then takes the place of `folder`, whole or not at all; files there that d2v did not write move into it.

    ValueError: `folder` holds something, and no record.
    """
    check_folder(folder)
    draft, old = _temporary(folder), folder.with_name(f".{folder.name}.old.d2v-tmp")
    if old.exists() and not folder.exists():  # a kill between the two renames below
        old.rename(folder)
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        record(draft, files_in(draft))
        if folder.exists():
            _keep_foreign(folder, draft)
            folder.rename(old)
        draft.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def files_in(folder: Path) -> set[str]:
    """Paths of all files below a folder, relative to it, but for its record."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {RECORD}


def recorded(folder: Path) -> set[str]:
    """The files that d2v wrote in a folder, as paths relative to it; none if its record is missing or cannot be read."""
    try:
        names = json.loads((folder / RECORD).read_text())["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return set()
    return {
        name for name in names if isinstance(name, str) and not name.startswith("/") and ".." not in Path(name).parts
    }


def record(folder: Path, names: Iterable[str]) -> None:
    """Adds files, as paths relative to a folder, to the list of what d2v wrote there."""
    known = recorded(folder)
    if not (folder / RECORD).is_file() or not known.issuperset(names):
        with written(folder / RECORD) as temporary:
            temporary.write_text(
                json.dumps({"written by d2v": True, "files": sorted(known.union(names))}, indent=1) + "\n"
            )


def check_folder(folder: Path) -> None:
    """ValueError: a folder that d2v would fill or replace holds something, and no record."""
    if folder.is_dir() and not (folder / RECORD).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists, and {UNRECORDED.replace('beside', 'in')}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a folder would be written there")


def check_file(path: Path) -> None:
    """ValueError: a file that d2v would write is there, and in no record."""
    if (path.exists() or path.is_symlink()) and path.name not in recorded(path.parent):
        raise ValueError(f"{path} exists, and {UNRECORDED}")


def check_new(path: Path, overwrite: bool) -> None:
    """ValueError: `path` exists and may not be replaced: `overwrite` is false, or d2v did not write it."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; run.overwrite=true replaces it")
    check_file(path)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes files, as paths relative to a folder, then the folders, itself included, that are empty without them."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir():
        remove_empty_folders(folder)


def remove_folder(folder: Path) -> None:
    """Removes what d2v wrote in a folder that has a record, and the folder, if nothing else is in it."""
    if (folder / RECORD).is_file():
        remove(folder, [*recorded(folder), RECORD])


def remove_empty_folders(folder: Path) -> None:
    """Removes the empty folders below a folder, and itself if it is empty."""
    inner = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in [*sorted(inner, reverse=True), folder]:
        if not any(path.iterdir()):
            path.rmdir()


def _keep_foreign(folder: Path, draft: Path) -> None:
    """Moves what d2v did not write from a folder to the one that takes its place; a name that both have gets `.kept` there."""
    own = recorded(folder)
    for name in sorted(files_in(folder) - own):
        target = draft / name
        if target.exists():
            target = target.with_name(f"{target.name}.kept")
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.d2v-tmp")
