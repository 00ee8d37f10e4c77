"""Which files of a folder belong to a split: those of its sub-folder, or those that carry its name."""

import re
from pathlib import Path

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")


def split_folder(folder: Path, split: str, files: list[Path], extensions: tuple[str, ...]) -> Path:
    """The sub-folder of `split`, or the folder itself if it is not divided.

    `files`: all in the folder. ValueError: it is divided and has no such split.
    """
    inner = set()
    for file in files:
        if file.suffix.lower() in extensions and file.parent != folder:
            inner.add(file.relative_to(folder).parts[0])
    known = inner & {*SPLITS, split}
    if len(known) == 1 and inner - known:  # classes of which one happens to be called "train", as in bus, car, train
        known = set()
    if split in known:
        return folder / split
    if known:
        raise ValueError(f"data.split {split!r}: {folder} has the splits {', '.join(sorted(known))}")
    return folder


def files_of_split(files: list[Path], split: str, *, by_name: bool) -> list[Path]:
    """The files whose names carry the split, as in test-00000.parquet, if `by_name`; undivided files are "train".

    ValueError: there is no such split.
    """
    names = {file: _splits_named(file, split) if by_name else set() for file in files}
    divided = set().union(*names.values())
    if not divided and split == "train":
        return files
    chosen = [file for file in files if split in names[file]]
    if not chosen:
        has = f"the splits {', '.join(sorted(divided))}" if divided else "no splits: all of it is 'train'"
        raise ValueError(f"data.split {split!r}: {files[0].parent} has {has}")
    return chosen


def _splits_named(file: Path, split: str) -> set[str]:
    """Words of a file's name that are splits, or the split that is asked for."""
    return {*re.split(r"[-_. ]", file.stem.lower())} & {*SPLITS, split}
