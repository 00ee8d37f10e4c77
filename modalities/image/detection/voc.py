"""Boxes from XML as Pascal VOC has them: one file an image, beside it or in Annotations/ beside the folder of images.

Splits are folders, or lists of names in ImageSets/Main/.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from d2v.modalities.common.kinds import IMAGES, is_of, named
from d2v.modalities.common.splits import choose
from d2v.modalities.common.tables import number
from d2v.modalities.image.detection.annotated import Annotated, Box, in_split
from d2v.protocols import NoSplitError

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(files: list[Path], root: Path, split: str, label: str) -> Annotated | None:
    """The boxes of a split; None: there is no such XML. Files that cannot be read are named and left out."""
    described = [file for file in files if file.suffix.lower() == ".xml"]
    if not described:
        return None
    described, notes, splits = _of_split(described, files, root, split)
    places = {(file.parent, file.stem): file for file in files if is_of(file, IMAGES)}
    images: dict[str, list[Box]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    bad = []
    for file in described:
        try:
            about, image = ElementTree.parse(file).getroot(), str(_image(file, places))
            images[image] = list(_boxes(about))
            width, height = (number(about.findtext(f"size/{side}")) for side in ("width", "height"))
            if 0 < width < math.inf and 0 < height < math.inf:  # many programs write 0
                sizes[image] = int(width), int(height)
        except (ElementTree.ParseError, ValueError, OSError) as error:
            bad.append(f"{file.name} ({' '.join(str(error).split())})")
    if not images:
        raise ValueError(f"none of the {len(described)} XML files of {root} can be read: {'; '.join(bad[:3])}")
    if bad:
        notes.append(f"left out, as their XML cannot be read: {len(bad)}: {', '.join(bad[:5])}")
    return Annotated(
        images, f"{len(images)} XML files of Pascal VOC", [*notes, *_without(files, places)], splits, sizes
    )


def _without(files: list[Path], places: dict[tuple[Path, str], Path]) -> list[str]:
    """What is said of images that no XML is of."""
    stems = {file.stem for file in files if file.suffix.lower() == ".xml"}
    images = [image for image in places.values() if image.stem not in stems]
    return [f"left out, as no XML is of them: {len(images)} images ({named(images)})"] if images else []


def _of_split(
    described: list[Path], files: list[Path], root: Path, split: str
) -> tuple[list[Path], list[str], list[str]]:
    """The XML of a split, by the lists of ImageSets/Main, or else by the folders that it lies in; what is said of it,
    and the names of all splits."""
    lists = {
        file.stem: file for file in files if file.suffix == ".txt" and file.parent.parts[-2:] == ("ImageSets", "Main")
    }
    if not lists:
        chosen = choose(described, root, split, split)
        if chosen.missing:
            raise NoSplitError(chosen.missing, chosen.splits)
        return chosen.files, chosen.notes, chosen.splits
    wanted, stems = set(), {file.stem for file in described}
    for name in in_split(split, lists, root):
        lines = [line.strip() for line in lists[name].read_text("utf-8").splitlines()]
        wanted |= {line if line in stems else line.split()[0] for line in lines if line}  # lists of a class go on: -1
    some = [file for file in described if file.stem in wanted]
    missing = sorted(wanted - stems)
    said = [f"in ImageSets/Main and without XML: {len(missing)}: {', '.join(missing[:5])}"] if missing else []
    return some, said, sorted(lists)


def _image(file: Path, places: dict[tuple[Path, str], Path]) -> Path:
    """The image that an XML is of; where there is none, the one that would lie beside it."""
    above = file.parent.parent
    folders = [file.parent, above, *sorted({folder for folder, _ in places if folder.parent == above})]
    return next(
        (places[place] for folder in folders if (place := (folder, file.stem)) in places), file.with_suffix(".jpg")
    )


def _boxes(about: ElementTree.Element) -> Iterator[Box]:
    """The objects of one XML. ValueError: one without a name or a whole box."""
    for thing in about.iter("object"):
        name = (thing.findtext("name") or "").strip()
        sides = [number(thing.findtext(f"bndbox/{side}")) for side in SIDES]
        if not name or any(side != side for side in sides):
            raise ValueError("an object without a name or a whole bndbox")
        yield name, sides[0], sides[1], sides[2], sides[3]
