"""Which files belong to a split: those in a folder, or text and tables in files, that carry its whole name.

The names lie directly in the folder that is read, or in the one folder that it holds; of tables, at any depth. A file's
name is what stands before its extension and the number of a shard: test-00000-of-00002.parquet is of "test". Folders
that all begin with such names, of more than one split, are splits too: train-clean-100, dev-other.
"""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from d2v import split_names
from d2v.modalities.common.folders import below
from d2v.modalities.common.kinds import TABLES, TEXTS, extension, named
from d2v.protocols import NoSplitError
from d2v.split_names import FAMILIES, family_of, is_split, means, place_of, same_split

SHARD = re.compile(r"[-_. ]\d+([-_. ]of[-_. ]\d+)?$")


class Chosen(NamedTuple):
    """The files of a split, the folder that holds them (of labels and metadata), what is said, all splits' names.

    `missing`: why files that are not divided, all of which these are then, are not of the split; a column may say which
    of their rows are. Who reads none raises it.
    """

    files: list[Path]
    root: Path
    notes: list[str]
    splits: list[str]
    missing: str = ""


def choose(files: Sequence[Path], root: Path, split: str, asked: str) -> Chosen:
    """Those of `files`, of one kind below `root`, that are of `split`, a part of data.split, which is `asked`.

    Undivided files are "train", or the split whose name `root` has. ValueError: there is no such split among several,
    or more than one that may be meant.
    """
    by_name, here, notes = _divided(files, root, split)
    if not by_name:
        is_all = same_split("train", split) or same_split(root.name, split)
        missing = "" if is_all else f"data.split {asked!r}: {root} has no splits: all of it is 'train'"
        return Chosen(list(files), root, notes, [], missing)
    try:
        wanted = [name for name in by_name if means(split, name, [*by_name]) and not same_split(name, split)]
        wanted = wanted or meant(_in_order(by_name, files), split, asked, root)
    except NoSplitError as error:
        if len(by_name) > 1 or extension(files[0]) not in TABLES:  # a table may hold more than its name says
            raise
        return Chosen(list(files), root, notes, [*by_name], str(error))
    members = set(itertools.chain(*(by_name[name] for name in wanted)))
    chosen = [file for file in files if file in members]
    if len(files) > 1:
        notes.append(_said(split, chosen, files, here, by_name))
    folders = {here / below(file, here)[0] for file in chosen}
    only = next(iter(folders)) if len(folders) == 1 else here
    return Chosen(chosen, only if only not in members else here, notes, by_family(by_name))


def expanded(files: Sequence[Path], root: Path, split: str) -> str:
    """`split`, or the folders that it stands for, joined: train-clean-100+train-other-500 for train."""
    found, _ = _descended(files, root, _by_beginning)
    return split_names.expanded(split, sorted(found))


def _descended(
    files: Sequence[Path], root: Path, group: Callable[[Sequence[Path], Path], dict[str, list[Path]]]
) -> tuple[dict[str, list[Path]], Path]:
    """The files as `group` finds them in the first folder where it does, each the only one in the one before."""
    here = root
    while True:
        by_name = group(files, here)
        first = {below(file, here)[0] for file in files}
        if by_name or len(first) > 1 or here / next(iter(first)) in files:
            return by_name, here
        here = here / next(iter(first))


def _by_beginning(files: Sequence[Path], here: Path) -> dict[str, list[Path]]:
    """The files by their folders, tables also by their names, if all of these begin with names of splits, and not all
    with that of one, nor any with one that is there itself."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        name = below(file, here)[0] if file.parent != here else ""
        if not name and extension(file) in TABLES:
            name = SHARD.sub("", file.stem)
        if name not in by_name and not (family_of(name) or is_split(name)):
            return {}  # as most data does at its first file
        by_name.setdefault(name, []).append(file)
    families = {family_of(name) for name in by_name if family_of(name)}
    plain = {one for one in by_name if is_split(one)}
    if not families or len(families) + len(plain) < 2:
        return {}
    if plain and extension(files[0]) in TABLES[2:]:  # train.csv beside eval_results.csv, which is another table
        return {}
    return {} if any(same_split(one, family) for one in plain for family in families) else by_name


def _divided(files: Sequence[Path], root: Path, split: str) -> tuple[dict[str, list[Path]], Path, list[str]]:
    """The files by the names of splits that they carry, and the folder in which these lie; {}: they are not divided."""
    if extension(files[0]) in TABLES:
        return _by_beginning(files, root) or _grouped(files, root, split), root, []
    by_name, here = _descended(files, root, _by_beginning)
    if by_name:
        return by_name, here, []
    by_name, here = _descended(files, root, partial(_grouped, split=split))
    if not by_name:
        return {}, root, []
    folders = {below(file, here)[0] for file in files if file.parent != here}
    others = folders - set(by_name)
    (name, *more) = by_name
    is_asked_for = name == split and split not in [family[0] for family in FAMILIES]
    if not more and name in folders and others and not is_asked_for:
        # Classes of which one happens to be called so, as in bus, car, train
        listed = ", ".join(sorted(folders)[:10])
        return {}, root, [f"the folder {name} beside others ({listed}) is no split; data.path={here / name} reads it"]
    return by_name, here, []


def _grouped(files: Sequence[Path], here: Path, split: str) -> dict[str, list[Path]]:
    """The files by the name of a split, or by `split`, that they carry; others are left out."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        for name in _names(file, here):
            if is_split(name) or name.lower() == split.lower():
                by_name.setdefault(name, []).append(file)
                break
    return by_name


def _names(file: Path, here: Path) -> list[str]:
    """What may name a file's split, outermost first."""
    *folders, _ = below(file, here)
    stem = SHARD.sub("", file.stem)
    if extension(file) in TABLES:
        return [*folders, stem]
    return folders[:1] or ([stem] if extension(file) in TEXTS else [])


def meant(names: Sequence[str], split: str, asked: str, where: Path) -> list[str]:
    """The names that `split` means: itself, or itself in other letters, or another name of the same split.

    `names`: of all splits of `where`. ValueError: none, or more than one that may be meant.
    """
    found = (
        [name for name in names if name == split]
        or [name for name in names if name.lower() == split.lower()]
        or [name for name in names if same_split(name, split)]
    )
    if not found:
        raise NoSplitError(f"data.split {asked!r}: {where} has the splits {', '.join(names)}", names)
    if len({name.lower() for name in found}) > 1:
        raise ValueError(f"data.split {asked!r}: {where} has {' and '.join(sorted(found))}; name one of them")
    return found


def _in_order(names: dict[str, list[Path]], files: Sequence[Path]) -> list[str]:
    """Folders by the alphabet, tables in the order of FAMILIES."""
    are_tables = extension(files[0]) in TABLES
    return sorted(names, key=lambda name: (place_of(name) if are_tables else 0, name))


def by_family(names: Collection[str]) -> list[str]:
    """Train first, then validation and test."""
    return sorted(names, key=lambda name: (place_of(name), name))


def _said(split: str, chosen: list[Path], files: Sequence[Path], here: Path, by_name: dict[str, list[Path]]) -> str:
    """What the choice was, and the files that no split takes."""
    left = set(files).difference(*by_name.values())
    named_places = {_named_place(file, here, by_name) for file in chosen}
    places = {str(here.joinpath(*place)) for place in named_places}
    line = f"split {split!r} of {here} is {_few(places)}: {len(chosen)} of {len(files)} files"
    if not left:
        return line
    some = [file for file in files if file in left]
    return (
        f"{line}; files that no split takes: {len(some)} in {_few({str(file.parent) for file in some})} ({named(some)})"
    )


def _named_place(file: Path, here: Path, names: Collection[str]) -> tuple[str, ...]:
    """The outermost folder of a file's path that carries one of the names, or the file, in parts below `here`."""
    parts = below(file, here)
    for place, name in enumerate(parts[:-1], 1):
        if name in names:
            return parts[:place]
    return parts


def _few(places: set[str]) -> str:
    return ", ".join(sorted(places)[:3]) + (", ..." if len(places) > 3 else "")
