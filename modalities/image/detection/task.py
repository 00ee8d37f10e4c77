"""Images with boxes as a task of fine-tuning: what is trained on, how it is scored, and what is left of it.

n boxes that were found in an image, m that it has.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import ViTImageProcessor

from d2v.evaluation.class_names import in_order
from d2v.finetuning.precision import average_precision, check_installed
from d2v.modalities.common import labels
from d2v.modalities.image.config import check_pixels
from d2v.modalities.image.detection.answers import of_image
from d2v.modalities.image.detection.batches import BoxedBatches
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.pictures import draw
from d2v.modalities.image.detection.samples import BoxedSamples
from d2v.modalities.image.frontend import FrontendConfig
from d2v.protocols import BadLog, Labelled, ScoredSplit
from d2v.reading import Limit


def open_data(config: Any, folder: Path, bad_log: BadLog, say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run; `config` is a FinetuneConfig.

    ValueError: as BoxedSamples and labels.divide; a class that training does not have; the metric is not installed.
    """
    check_installed()
    data, frontend, train = config.data, config.frontend, config.train
    check_pixels(data, frontend)

    def make(split: str) -> BoxedSamples:
        samples = BoxedSamples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    samples, indices, parts = labels.divide(data, train.seed, make)
    say(labels.uses_of_splits(data, samples.report.splits))
    names = in_order(_names(samples))
    classes = _classes(samples, names, data.split)
    splits = {}
    for split, (others, rows) in parts.items():
        known = classes if others is samples else _classes(others, names, getattr(data, f"{split}_split"))
        splits[split] = _scored(others, rows, known)
    limit = Limit(bad_log, data.max_bad_share, len(indices))
    return Labelled(
        batches=BoxedBatches(samples, indices, classes, batch_size=train.batch_size, seed=train.seed, bad_log=limit),
        training=_scored(samples, indices, classes),
        splits=splits,
        head={"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}},
        score=_precision_inside,
        metric="ap50",
        rows=partial(_rows, names),
        classes=None,
        save_preprocessor=lambda place: save_preprocessor(place, data, frontend),
        draw=partial(draw, names),
    )


def _names(samples: BoxedSamples) -> set[str]:
    """The classes that boxes of the samples have."""
    found: set[str] = set()
    for of_sample in samples.names:
        found.update(map(str, of_sample))
    return found


def _classes(samples: BoxedSamples, names: list[str], split: str) -> list[np.ndarray]:
    """Numbers of the classes of each sample's boxes. ValueError: a class that is not among `names`."""
    unseen = _names(samples).difference(names)
    if unseen:
        raise ValueError(
            f"boxes of split {split!r} are of {', '.join(map(repr, in_order(unseen)[:5]))}, unseen in training; "
            f"its classes are {', '.join(names[:20])}"
        )
    by_name = {name: number for number, name in enumerate(names)}
    classes = []
    for of_sample in samples.names:
        classes.append(np.array([by_name[str(name)] for name in of_sample], dtype=int))
    return classes


def _scored(samples: BoxedSamples, indices: np.ndarray, classes: list[np.ndarray]) -> ScoredSplit:
    """True boxes (m, 7) of the samples as their views have them, each with its class, and the image's width and height
    there."""
    wanted = []
    for index in indices:
        height, width = samples.sizes[index]
        scale, kinds = samples.scale(index), classes[index][:, None]
        ends = np.tile([width, height] * scale[:2], (len(kinds), 1))
        wanted.append(np.concatenate([samples.boxes[index] * scale, kinds, ends], axis=1).astype(np.float32))
    return ScoredSplit(samples, indices, wanted)


def _precision_inside(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """`average_precision` of boxes that are cut where their image ends, as the predictions file and true ones are.

    Beyond it the view is filled. An image without true boxes says no size: whatever is found there is wrong.
    """
    inside = []
    for boxes, truth in zip(found, wanted, strict=True):
        if len(truth):
            boxes = np.concatenate([boxes[:, :4].clip(0, np.tile(truth[0, 5:7], 2)), boxes[:, 4:]], axis=1)
        inside.append(boxes)
    return average_precision(inside, [truth[:, :5] for truth in wanted])


def _rows(names: list[str], split: ScoredSplit, found: list[np.ndarray]) -> list[dict]:
    """Lines of a predictions file, one a box in pixels of its image; one without a box where none was found."""
    rows = []
    for index, boxes in zip(split.indices, found, strict=True):
        rows += [{"id": split.samples.ids[index], **cells} for cells in of_image(names, split.samples, index, boxes)]
    return rows


def save_preprocessor(folder: Path, data: DetectionConfig, frontend: FrontendConfig) -> None:
    """Writes preprocessor_config.json: what BoxedSamples.view does, for `AutoImageProcessor`."""
    size = frontend.image_size
    ViTImageProcessor(
        size={"max_height": size, "max_width": size},
        do_center_crop=False,
        do_pad=True,
        pad_size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        image_mean=list(data.mean),
        image_std=list(data.std),
        do_convert_rgb=frontend.channels == 3,
    ).save_pretrained(folder)
