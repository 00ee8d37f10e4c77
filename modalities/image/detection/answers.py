"""What the answers of a detector say, and the boxes that images have all the same.

n boxes that were found in an image, m that it has.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d2v.finetuning.precision import average_precision, check_installed
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.samples import BoxedSamples, WholeImages
from d2v.protocols import Known, Rows, Says, Unlabelled

SIDES = ("xmin", "ymin", "xmax", "ymax")


def of_image(names: list[str], samples: WholeImages, index: int, boxes: np.ndarray) -> list[dict[str, Any]]:
    """The boxes (n, 6) that were found in an image, in its pixels; where there are none, a row of empty cells."""
    rows, scale = [], samples.scale(index)
    height, width = samples.sizes[index]
    for *sides, score, kind in boxes.tolist():
        places = (np.array(sides) / scale).clip(0, [width, height] * 2).round(2).tolist()
        rows.append({"label": names[int(kind)], "score": round(score, 6), **dict(zip(SIDES, places, strict=True))})
    return rows or [dict.fromkeys(("label", "score", *SIDES))]


def says(config: Any, data: DetectionConfig, every: bool) -> Says:
    """The boxes that a detector finds in an image. ValueError: `every`."""
    if every:
        raise ValueError("probabilities=true asks for those of classes, and this model finds boxes: leave it out")
    return partial(of_image, [config.id2label[number] for number in range(config.num_labels)])


def known(config: Any, settings: Any, folder: Path, source: Any) -> Known | None:
    """The boxes of images that have annotations. ValueError: of another class, or of images that do not fit; what
    scores boxes is not installed."""
    if "boxes" not in source.column_names:
        return None
    check_installed()
    data, by_name = replace(settings.data, check_files=False), {name: n for n, name in config.id2label.items()}
    rows = Rows(source, 0, whole=True)
    samples = BoxedSamples(data, settings.frontend, split=data.split, folder=folder, rows=rows)
    others = sorted({str(name) for names in samples.names for name in names} - set(by_name))
    if others:
        raise ValueError(f"boxes are of {', '.join(map(repr, others[:3]))}; the classes are {', '.join(by_name)}")
    wanted: list[np.ndarray | None] = [None] * len(source)
    for row, boxes, names in zip(samples.rows.tolist(), samples.boxes, samples.names, strict=True):
        kinds = np.array([by_name[str(name)] for name in names], dtype=float)[:, None]
        wanted[row] = np.concatenate([boxes, kinds], axis=1).astype(np.float32)
    return Known("", [None] * len(source), wanted, partial(_precision, by_name))


def _precision(
    by_name: dict[str, int], wanted: Sequence[np.ndarray], found: list[list[dict[str, Any]]]
) -> dict[str, float]:
    arrays = []
    for rows in found:
        boxes = [[*(row[side] for side in SIDES), row["score"], by_name[row["label"]]] for row in rows if row["label"]]
        arrays.append(np.array(boxes, dtype=np.float32).reshape(-1, 6))
    return average_precision(arrays, wanted)


UNLABELLED = Unlabelled(WholeImages, says, ("path", "split", "max_bad_share", "min_size", "boxes", "label"), known)
