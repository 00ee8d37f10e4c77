"""Images with their boxes, before any image is read; which names are of a split, and where the files lie."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from d2v.modalities.common.splits import same_split
from d2v.protocols import NoSplitError

Box = tuple[str, float, float, float, float]  # name, left, top, right, bottom, in pixels
USUAL = ("images", "image", "imgs", "jpegimages")  # folders of images
LOOKED_FOR = 200  # names of images, by which it is found where these lie


class Annotated(NamedTuple):
    """The boxes of each image of a split by the path of its file, what they were read from, what is said of it, and the
    names of all splits; none: it is not divided."""

    images: dict[str, list[Box]]
    source: str
    notes: list[str]
    splits: Sequence[str] = ()
    sizes: Mapping[str, tuple[int, int]] = MappingProxyType({})  # width and height as the annotations say them


def in_split(split: str, names: Iterable[str], where: Path) -> set[str]:
    """Which of the `names` of splits mean `split`. ValueError: none."""
    there = {name for name in names if name}
    wanted = {split} & there or {name for name in there if same_split(name, split)}
    if not wanted:
        raise NoSplitError(f"data.split {split!r}: {where} has the splits {', '.join(sorted(there))}", sorted(there))
    return wanted


def found_below(names: Iterable[str], root: Path, split: str) -> Path:
    """The folder that relative names of images are below: `root`, one in it, or else one beside it.

    `root` if it has some of them; else of the folders that have some those that say the split, of these those that are
    usually of images, of these the one that has most. ValueError: those are several.
    """
    listed = list(dict.fromkeys(names))
    some = listed[:: -(-len(listed) // LOOKED_FOR) or 1]
    for places in ([root], _folders(root), [root.parent], _folders(root.parent)):
        there = {place: sum((place / name).is_file() for name in some) for place in places}
        best = [place for place in places if there[place]]
        best = [place for place in best if _says(place.name, split)] or best
        best = [place for place in best if place.name.lower() in USUAL] or best  # beside masks of the same names
        best = [place for place in best if there[place] == max(there.values(), default=0)] or best
        if len(best) > 1:
            raise ValueError(
                f"{listed[0]} and others lie in {best[0]} and in {best[1]}, and nothing says which are of split "
                f"{split!r}: name files by their paths from the annotations, or folders as splits are"
            )
        if best:
            return best[0]
    return root


def _says(name: str, split: str) -> bool:
    """Whether a word of a folder's name is the split: train2017."""
    return any(same_split(word, split) for word in re.findall("[a-z]+", name.lower()))


def _folders(root: Path) -> list[Path]:
    return sorted(place for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
