"""Labelled images for fine-tuning: RandAugment, random erasing, mixup and cutmix by timm; labels are mixed likewise.

B samples of a batch, C channels, S image size, L classes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from d2v.modalities.common import answers, labels, sampling
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.image import augment
from d2v.modalities.image.batches import transform
from d2v.modalities.image.config import LabelledConfig, check_labelled
from d2v.modalities.image.detection import answers as boxes
from d2v.modalities.image.detection import task
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.modalities.image.samples import Samples, save_preprocessor
from d2v.models.detection import D2vForObjectDetection
from d2v.models.task_models import D2vForImageClassification
from d2v.protocols import BadLog, Labelled, LabelledTask, Unlabelled
from d2v.reading import Limit
from d2v.types import View

UNLABELLED = Unlabelled(Samples, answers.says, ("path", "split", "max_bad_share", "min_size", "label"), answers.known)


class LabelledBatches:
    """Augmented, labelled batches: a pure function of (seed, step, part, parts)."""

    def __init__(
        self,
        opened: labels.Opened,
        data: LabelledConfig,
        frontend: FrontendConfig,
        *,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """ValueError: fewer samples than one batch, or a RandAugment that timm does not know."""
        self.sampler = sampling.Sampler(len(opened.indices), batch_size, seed)
        self._opened, self._data, self._seed, self._bad_log = opened, data, seed, bad_log
        self._transform = transform(data, frontend)
        self._rand_augment = _rand_augment(data, frontend.image_size) if data.auto_augment else None
        self._erase = RandomErasing(data.random_erase, mode="pixel", device="cpu") if data.random_erase else None
        self._mixup = None
        if data.mixup or data.cutmix:
            shares = {"prob": data.mix_prob, "switch_prob": data.cutmix_prob, "label_smoothing": data.label_smoothing}
            self._mixup = Mixup(data.mixup, data.cutmix, num_classes=len(opened.names or []), **shares)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: pixel_values (B, C, S, S) with their labels; the sample ids.

        Labels are (B,), or shares of classes (B, L).
        """
        batch = self.sampler(step)
        rows = list(range(len(batch)))[sampling.share(len(batch), part, parts)]
        partners = []
        if self._mixup is not None and parts > 1:
            # timm mixes each image with the one as far from the other end; here that of the whole batch
            partners = [len(batch) - 1 - row for row in reversed(rows)]
        *generators, common = sampling.generators(self._seed, step, range(len(batch) + 1))  # the last is no row's
        drawn = [self._row(generators[row], int(batch[row])) for row in [*rows, *partners]]
        images, targets, ids = zip(*drawn, strict=True)
        pixels = torch.stack(images)  # (B, C, S, S), and as many partners
        target = torch.as_tensor(np.array(targets))
        if self._mixup is not None:
            with seeded_globals(common):
                pixels, target = self._mixup(pixels, target)
        elif self._data.label_smoothing:  # timm's way to write them, unmixed
            target = mixup_target(target, len(self._opened.names), smoothing=self._data.label_smoothing)
        view = View(MODALITY, {"pixel_values": pixels[: len(rows)]}, labels=target[: len(rows)])
        return [view], list(ids[: len(rows)])

    def _row(self, generator: np.random.Generator, place: int) -> tuple[Tensor, Any, str]:
        """Augmented image (C, S, S), its label, sample id."""
        indices = self._opened.indices
        train, candidates = self._opened.train, indices[sampling.following(place, len(indices))]
        index, image = sampling.readable(
            train.ids, candidates, train.image, self._bad_log, "100 images in a row cannot be read"
        )
        with seeded_globals(generator):
            image = self._transform(image)
            image = image if self._rand_augment is None else self._rand_augment(augment.eight_bits(image))
            pixels = augment.normalise([image], self._data.mean, self._data.std)[0]
            pixels = pixels if self._erase is None else self._erase(pixels)
        return pixels, self._opened.labels[index], self._opened.train.ids[index]


def _rand_augment(data: LabelledConfig, image_size: int) -> Callable[[Any], Any]:
    """RandAugment as in timm's training transform: filled with the mean colour, moved by at most 0.45 of the side."""
    fill = tuple(min(255, round(255 * value)) for value in (list(data.mean) * 3)[:3])
    settings = {"img_mean": fill, "translate_const": int(image_size * 0.45), "interpolation": Image.Resampling.BICUBIC}
    try:
        made: Any = rand_augment_transform(data.auto_augment, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"data.auto_augment is {data.auto_augment!r}; timm reads strings such as rand-m9-mstd0.5-inc1 ({error})"
        ) from None
    # At its strongest timm asks for 0 bits, which Pillow refuses from version 13 on.
    for change in made.ops:
        if change.name.startswith("Posterize"):
            change.level_fn = partial(_at_least_a_bit, change.level_fn)
    return made


def _at_least_a_bit(level_fn: Callable[..., tuple[int]], level: float, settings: dict) -> tuple[int]:
    """Bits that posterising keeps."""
    return (max(1, level_fn(level, settings)[0]),)


def labelled_task(data: dict) -> LabelledTask:
    """Boxes where data.boxes is given; else classes or numbers."""
    if "boxes" in data:
        return LabelledTask(DetectionConfig, D2vForObjectDetection, task.open_data, unlabelled=boxes.UNLABELLED)
    return LabelledTask(LabelledConfig, D2vForImageClassification, open_data, unlabelled=UNLABELLED)


def open_data(config: Any, folder: Path, bad_log: BadLog, say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run; `config` is a FinetuneConfig.

    ValueError: as check_labelled, Samples and labels.open_splits.
    """
    data, frontend, train = config.data, config.frontend, config.train
    check_labelled(data, frontend, train.batch_size)

    def make(split: str) -> Samples:
        samples = Samples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, train.seed, make)
    for note in opened.notes:
        say(note)
    limit = Limit(bad_log, data.max_bad_share, len(opened.indices))
    batches = LabelledBatches(opened, data, frontend, batch_size=train.batch_size, seed=train.seed, bad_log=limit)
    return labels.labelled(opened, batches, lambda place: save_preprocessor(place, folder, data, frontend))
