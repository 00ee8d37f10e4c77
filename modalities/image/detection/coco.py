"""Boxes from a JSON as COCO has them: images, annotations with bbox (left, top, width, height), and categories."""

import json
import re
from pathlib import Path
from typing import Any

from d2v.modalities.common.splits import is_split, same_split
from d2v.modalities.image.detection.annotated import Annotated, Box, found_below
from d2v.protocols import NoSplitError

PARTS = ("images", "annotations", "categories")
FAVOURED = "instances"  # of COCO's own files, which lie beside those of key points and captions


def read(files: list[Path], root: Path, split: str, label: str) -> Annotated | None:
    """The boxes of a split; None: there is no such JSON. ValueError: several may be meant, or it is damaged."""
    found = {file: content for file in files if file.suffix.lower() == ".json" and (content := _content(file))}
    if not found:
        return None
    chosen = _of_split(list(found), root, split)
    content = found[chosen]
    names = {one["id"]: one["name"] for one in content["categories"]}
    paths = {one["id"]: one["file_name"] for one in content["images"]}
    boxes: dict[Any, list[Box]] = {number: [] for number in paths}
    crowds = 0
    for one in content["annotations"]:
        if one.get("iscrowd"):
            crowds += 1
            continue
        for key, there in (("image_id", paths), ("category_id", names)):
            if one.get(key) not in there:
                raise ValueError(
                    f"{chosen}: annotation {one.get('id')} has {key} {one.get(key)}, which it does not list"
                )
        boxes[one["image_id"]].append(
            _box(names[one["category_id"]], one.get("bbox"), f"{chosen}: annotation {one.get('id')}")
        )
    folder = found_below(paths.values(), chosen.parent)
    images = {str(folder / paths[number]): some for number, some in boxes.items()}
    notes = [f"left out: {crowds} boxes of crowds"] if crowds else []
    splits: set[str] = set()
    for file in found:
        splits.update(filter(is_split, _words(file, root)))
    return Annotated(images, f"the JSON of COCO {chosen.name}", notes, sorted(splits))


def _content(file: Path) -> dict | None:
    """What a JSON holds, if it is one of COCO with categories."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError):
        return None
    is_coco = isinstance(content, dict) and all(isinstance(content.get(part), list) for part in PARTS)
    return content if is_coco else None


def _of_split(files: list[Path], root: Path, split: str) -> Path:
    """The file of a split, which the words of its name or its folder say. ValueError: none, or several."""
    words = {file: _words(file, root) for file in files}
    if len(files) == 1 and not any(map(is_split, words[files[0]])) and same_split("train", split):
        return files[0]
    wanted = []
    for file, said in words.items():
        if any(same_split(word, split) for word in said):
            wanted.append(file)
    best = [file for file in wanted if FAVOURED in words[file]] or wanted
    if not best:
        raise NoSplitError(f"data.split {split!r}: {root} has {', '.join(file.name for file in files)}")
    if len(best) > 1:
        raise ValueError(f"data.split {split!r}: {root} has {best[0].name} and {best[1].name}; data.path may name one")
    return best[0]


def _words(file: Path, root: Path) -> list[str]:
    """The words of a path below `root` in small letters: instances_train2017.json has train."""
    return re.findall(r"[a-z]+", str(file.relative_to(root).with_suffix("")).lower())


def _box(name: Any, box: Any, where: str) -> Box:
    """ValueError: it has not four numbers."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise ValueError(f"{where} has bbox {box}; it must be left, top, width and height")
    left, top, width, height = box
    return str(name), left, top, left + width, top + height
