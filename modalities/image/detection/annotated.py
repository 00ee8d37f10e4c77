"""Images with their boxes, before any image is read; which names are of a split, and where the files lie."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from d2v.modalities.common.splits import same_split
from d2v.protocols import NoSplitError

Box = tuple[str, float, float, float, float]  # name, left, top, right, bottom, in pixels


class Annotated(NamedTuple):
    """The boxes of each image of a split by the path of its file, what they were read from, what is said of it, and the
    names of all splits; none: it is not divided."""

    images: dict[str, list[Box]]
    source: str
    notes: list[str]
    splits: Sequence[str] = ()


def in_split(split: str, names: Iterable[str], where: Path) -> set[str]:
    """Which of the `names` of splits mean `split`. ValueError: none."""
    there = {name for name in names if name}
    wanted = {split} & there or {name for name in there if same_split(name, split)}
    if not wanted:
        raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(sorted(there))}")
    return wanted


def found_below(names: Iterable[str], root: Path) -> Path:
    """The folder that relative names of images are below: `root`, one in it, or one beside it, which has the first."""
    first = next(iter(names), "")
    places = [root, *_folders(root), root.parent, *_folders(root.parent)]
    return next((place for place in places if (place / first).is_file()), root)


def _folders(root: Path) -> list[Path]:
    return sorted(place for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
