"""Opens images with boxes: a row for each image of a split, from whichever of three forms the data has."""

from pathlib import Path
from typing import Any

import datasets

from d2v.modalities.common.folders import walk
from d2v.modalities.common.noted import notes, splits, with_notes
from d2v.modalities.common.sources import with_splits
from d2v.modalities.common.tables import name_rows
from d2v.modalities.image.detection import coco, table, voc
from d2v.modalities.image.detection.annotated import Annotated
from d2v.modalities.image.detection.config import AUTO, COCO, TABLE, VOC, DetectionConfig
from d2v.modalities.image.samples import Samples
from d2v.protocols import NoSplitError

READERS = {TABLE: table.read, COCO: coco.read, VOC: voc.read}


class NoBoxesError(ValueError):
    """The data has no annotations."""


def open_images(config: DetectionConfig, split: str) -> datasets.Dataset:
    """A row for each image of a split: as open_boxes where there are annotations, else each image that there is.

    ValueError: there are none; a file of annotations that cannot be read.
    """
    try:
        return open_boxes(config, split)
    except NoSplitError:
        raise
    except NoBoxesError:
        return Samples.open(config, split)  # type: ignore[arg-type]
    except ValueError as error:
        if Path(config.path).is_file():
            raise
        dataset = Samples.open(config, split)  # type: ignore[arg-type]
        return with_notes(dataset, [*notes(dataset), f"annotations that cannot be read: {error}"], splits(dataset))


def open_boxes(config: DetectionConfig, split: str) -> datasets.Dataset:
    """A row for each image: "file", "names", "boxes" and, as annotations say it, "size", width and height.

    ValueError: there are no boxes, or some cannot be read.
    """
    files, root = _files(config.path)
    for kind in READERS if config.boxes == AUTO else (config.boxes,):
        found = READERS[kind](files, root, split, config.label)
        if found is not None:
            if kind != TABLE and config.label != DetectionConfig.label:
                raise ValueError(
                    f"data.label is {config.label!r}, and nothing reads it: it is of a table, and boxes are from "
                    f"{found.source}"
                )
            outside = {str(Path(file).parent) for file in found.images if not Path(file).is_relative_to(root)}
            if outside:
                found.notes.append(f"the images lie in {min(outside)}, outside of data.path")
            return _dataset(found, config.path, split)
    raise NoBoxesError(
        f"data.path {root} has no boxes (data.boxes={config.boxes}): they are a table with the columns file, "
        f"{config.label}, xmin, ymin, xmax and ymax, Pascal VOC's XML beside images or in Annotations/, or COCO's JSON"
    )


def _files(path: Any) -> tuple[list[Path], Path]:
    """The files of data.path, a folder or a file, and the folder. ValueError: it is neither."""
    place = Path(path).expanduser().absolute() if isinstance(path, str | Path) and path else None
    if place is not None and place.is_file():
        return [place], place.parent
    if place is None or not place.is_dir():
        raise NoBoxesError(f"data.path is {path!r}; boxes are read from a folder, a table or a JSON of this machine")
    return walk(place).files, place


def _dataset(found: Annotated, path: Any, split: str) -> datasets.Dataset:
    columns: dict[str, list] = {"file": [], "names": [], "boxes": [], "size": []}
    for file, boxes in found.images.items():
        columns["file"].append(file)
        columns["names"].append([name for name, *_ in boxes])
        columns["boxes"].append([sides for _, *sides in boxes])
        columns["size"].append(found.sizes.get(file, ()))
    string, number = datasets.Value("string"), datasets.Value("float64")
    kinds = {"file": string, "names": datasets.List(string), "boxes": datasets.List(datasets.List(number))}
    kinds["size"] = datasets.List(datasets.Value("int64"))
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    dataset = name_rows(dataset, path, split, "image")
    dataset.info.description = "\n".join([f"boxes of split {split!r}: from {found.source}", *found.notes])
    return with_splits(dataset, found.splits)
