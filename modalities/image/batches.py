"""Training batches of images, masked or in several views: pure functions of (seed, step, part, parts).

B samples of a batch, C channels, S image size, M masks of an image, T patches.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import sampling
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.image import augment, colours, masks, views
from d2v.modalities.image.config import DataConfig, ReadConfig
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.modalities.image.samples import Samples
from d2v.reading import ignored
from d2v.types import View


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = ignored,
) -> "MaskedBatches | ViewBatches":
    """Training batches of `samples`; `bad_log(id, reason)` hears of images that can no longer be read."""
    make = ViewBatches if data.views else MaskedBatches
    return make(samples, data, frontend, batch_size=batch_size, seed=seed, bad_log=bad_log)


class MaskedBatches:
    """One augmented view of each image, with M masks of its patches."""

    def __init__(
        self,
        samples: Samples,
        data: DataConfig,
        frontend: FrontendConfig,
        *,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """ValueError: fewer samples than one batch."""
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)
        self._samples, self._data, self._frontend, self._seed, self._bad_log = samples, data, frontend, seed, bad_log
        self._transform = transform(data, frontend)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: pixel_values (B, C, S, S) with M masks of each; the sample ids."""
        images, hidden, indices = [], [], []
        in_blocks, grid = self._data.mask_kind == "multi_block", self._frontend.grid
        for place, generator in _rows(self.sampler, self._seed, step, part, parts):
            if not in_blocks:
                hidden += masks.draw(generator, self._data, grid)
            index, image = _image(self._samples, place, self._bad_log)
            with seeded_globals(generator):
                images.append(self._transform(image))
            indices.append(index)
        pixels = augment.normalise(images, self._data.mean, self._data.std)  # (B, C, S, S)
        if in_blocks:
            batch = self.sampler.batch_size
            rows = range(batch)[sampling.share(batch, part, parts)]
            mask = masks.multi_block(self._seed, step, batch, rows, self._data, grid)
        else:
            mask = masks.gather(hidden, self._data.mask_kind)
        view = View(MODALITY, {"pixel_values": pixels}, mask=mask, indices=torch.tensor(indices))
        return [view], [self._samples.ids[index] for index in indices]


class ViewBatches:
    """Each image read once and seen in the views that data.views and data.local_views ask for.

    With data.mask_views those of data.views are masked.
    """

    def __init__(
        self,
        samples: Samples,
        data: DataConfig,
        frontend: FrontendConfig,
        *,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """ValueError: fewer samples than one batch."""
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)
        self._samples, self._data, self._frontend, self._seed, self._bad_log = samples, data, frontend, seed, bad_log
        self._transforms = views.transforms(data, frontend.image_size)
        self._num_masked = len(data.views) if data.mask_views else 0  # local views, which are last, have no masks

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: pixel_values (B, C, S, S) of each view; the sample ids."""
        images: list[list[Any]] = [[] for _ in self._transforms]  # of each view
        hidden: list[list[np.ndarray]] = [[] for _ in self._transforms]
        indices = []
        for place, generator in _rows(self.sampler, self._seed, step, part, parts):
            for of_view in hidden[: self._num_masked]:
                of_view.append(masks.draw_varied(generator, self._data, self._frontend.grid))
            index, image = _image(self._samples, place, self._bad_log)
            with seeded_globals(generator):
                for of_view, make in zip(images, self._transforms, strict=True):
                    of_view.append(make(image))
            indices.append(index)
        numbers = torch.tensor(indices)
        made = []
        for number, (of_view, masks_of_view) in enumerate(zip(images, hidden, strict=True)):
            later = None
            if self._data.augment_on_device:
                pixels, later = colours.collate(of_view, self._data.mean, self._data.std)  # (B, C, S, S)
            else:
                pixels = augment.normalise(of_view, self._data.mean, self._data.std)  # (B, C, S, S)
            mask = masks.gather(masks_of_view, self._data.mask_kind) if masks_of_view else None
            local = number >= len(self._data.views)
            inputs = {"pixel_values": pixels}
            made.append(View(MODALITY, inputs, mask=mask, indices=numbers, local=local, later=later))
        return made, [self._samples.ids[index] for index in indices]


def _rows(
    sampler: sampling.Sampler, seed: int, step: int, part: int, parts: int
) -> Iterator[tuple[int, np.random.Generator]]:
    """Of this part's rows of the step's batch: which sample, and the row's generator."""
    batch = sampler(step)
    rows = range(len(batch))[sampling.share(len(batch), part, parts)]
    return zip(batch[rows].tolist(), sampling.generators(seed, step, rows), strict=True)


def _image(samples: Samples, place: int, bad_log: Callable[[str, str], None]) -> tuple[int, Any]:
    """Which sample, and its image: that of `place`, or the next that can be read."""
    return sampling.readable(
        samples.ids,
        sampling.following(place, len(samples)),
        samples.image,
        bad_log,
        "100 images in a row cannot be read",
    )


def transform(data: ReadConfig, frontend: FrontendConfig) -> Callable[[Any], Any]:
    """The random training transform of an image."""
    return augment.training(
        frontend.image_size,
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        flip=data.flip,
        color_jitter=data.color_jitter,
    )
