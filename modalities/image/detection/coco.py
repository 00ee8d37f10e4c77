"""Boxes from a JSON as COCO has them: images, annotations with bbox (left, top, width, height), and categories."""

import json
import math
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
    found = _contents(files)
    if not found:
        return None
    chosen = _of_split(list(found), root, split)
    content = found[chosen]
    paths = _by_id(content["images"], "file_name", f"{chosen}: images")
    boxes, crowds = _boxes(content, paths, chosen)
    folder = found_below(map(str, paths.values()), chosen.parent, split)
    images: dict[str, list[Box]] = {}
    for number, some in boxes.items():
        images.setdefault(str(folder / str(paths[number])), []).extend(some)  # a file may be listed twice
    sizes = {}
    for one in content["images"]:
        size = (one.get("width"), one.get("height"))
        if all(isinstance(side, int) and side > 0 for side in size):
            sizes[str(folder / str(one["file_name"]))] = size
    notes = [f"left out: {crowds} boxes of crowds"] if crowds else []
    splits: set[str] = set()
    for file in found:
        splits.update(filter(is_split, _words(file, root)))
    return Annotated(images, f"the JSON of COCO {chosen.name}", notes, sorted(splits), sizes)


def _contents(files: list[Path]) -> dict[Path, dict]:
    """What the JSONs of COCO with categories hold. ValueError: there is none, but one that is cut off or no JSON."""
    found, faults = {}, []
    for file in [file for file in files if file.suffix.lower() == ".json"]:
        try:
            content = json.loads(file.read_text("utf-8-sig"))
        except (ValueError, OSError) as error:
            faults.append(f"{file} cannot be read as JSON: {' '.join(str(error).split())[:200]}")
            continue
        if isinstance(content, dict) and all(isinstance(content.get(part), list) for part in PARTS):
            found[file] = content
    if faults and not found and not any(file.suffix.lower() == ".xml" for file in files):
        raise ValueError(faults[0])
    return found


def _boxes(content: dict, paths: dict[Any, Any], file: Path) -> tuple[dict[Any, list[Box]], int]:
    """Boxes by the id of their image, and how many are of crowds. ValueError: one of nothing that is listed."""
    names = _by_id(content["categories"], "name", f"{file}: categories")
    boxes: dict[Any, list[Box]] = {number: [] for number in paths}
    crowds = 0
    for one in content["annotations"]:
        if one.get("iscrowd"):
            crowds += 1
            continue
        for key, there in (("image_id", paths), ("category_id", names)):
            if one.get(key) not in there:
                raise ValueError(f"{file}: annotation {one.get('id')} has {key} {one.get(key)}, which it does not list")
        boxes[one["image_id"]].append(
            _box(names[one["category_id"]], one.get("bbox"), f"{file}: annotation {one.get('id')}")
        )
    return boxes, crowds


def _by_id(entries: list, key: str, where: str) -> dict[Any, Any]:
    """What each entry has under `key`, by its id. ValueError: one lacks either, or two have one id."""
    found: dict[Any, Any] = {}
    for one in entries:
        if not isinstance(one, dict) or one.get("id") is None or one.get(key) is None:
            raise ValueError(f"{where} has an entry without id or {key}: {str(one)[:80]}")
        if one["id"] in found:
            raise ValueError(f"{where} has two entries with id {one['id']}: {found[one['id']]} and {one[key]}")
        found[one["id"]] = one[key]
    return found


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
        there = sorted({word for said in words.values() for word in said if is_split(word)})
        raise NoSplitError(f"data.split {split!r}: {root} has {', '.join(file.name for file in files)}", there)
    if len(best) > 1:
        raise ValueError(f"data.split {split!r}: {root} has {best[0].name} and {best[1].name}; data.path may name one")
    return best[0]


def _words(file: Path, root: Path) -> list[str]:
    """The words of a path below `root` in small letters: instances_train2017.json has train."""
    return re.findall(r"[a-z]+", str(file.relative_to(root).with_suffix("")).lower())


def _box(name: Any, box: Any, where: str) -> Box:
    """ValueError: it has not four numbers."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise ValueError(f"{where} has bbox {box}; it must be left, top, width and height")
    left, top, width, height = box
    return str(name), left, top, left + width, top + height


def _is_number(side: Any) -> bool:
    return isinstance(side, int | float) and math.isfinite(side)
