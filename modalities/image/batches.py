"""Training batches of images, masked or in several views: pure functions of (seed, step, part, parts).

B samples of a batch, C channels, S image size, T patches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.image import augment, masks, views
from d2v.modalities.image.data import DataConfig, Samples, readable, transform
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.types import View


def _ignore(sample: str, reason: str) -> None:
    """No log was asked for."""


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = _ignore,
) -> "ImageBatches":
    """Training batches of `samples`; `bad_log(id, reason)` hears of images that can no longer be read."""
    return ImageBatches(samples, data, frontend, batch_size=batch_size, seed=seed, bad_log=bad_log)


class ImageBatches:
    """Augmented batches: one view, masked, or those that data.views and data.local_views ask for."""

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
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)
        self._samples, self._data, self._frontend, self._seed, self._bad_log = samples, data, frontend, seed, bad_log
        self._transforms = views.transforms(data, frontend.image_size) if data.views else [transform(data, frontend)]

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: views of pixel_values (B, C, S, S), with M masks of each where it is masked; the sample ids."""
        batch = self.sampler(step)
        rows = sampling.share(len(batch), part, parts)
        drawn = [
            self._row(generator, int(index))
            for index, generator in zip(
                batch[rows], masking.generators(self._seed, step, range(len(batch))[rows]), strict=True
            )
        ]
        images, hidden, indices = zip(*drawn, strict=True)
        numbers = torch.tensor(indices)
        made = []
        for number in range(len(self._transforms)):
            pixels = augment.normalise([row[number] for row in images], self._data.mean, self._data.std)  # (B, C, S, S)
            mask = masks.gather([mask for row in hidden for mask in row[number]], self._data.mask_kind)
            made.append(View(MODALITY, {"pixel_values": pixels}, None, mask, indices=numbers))
        return made, [self._samples.ids[index] for index in indices]

    def _row(self, generator: np.random.Generator, index: int) -> tuple[list[Any], list[list[np.ndarray]], int]:
        """Of each view the image and its masks, hidden (T,) bool; the sample's number."""
        hidden = masks.draw(generator, self._data, self._frontend)
        hidden += [[]] * (len(self._transforms) - len(hidden))  # local views have none
        index, image = readable(self._samples, np.arange(index, index + 100) % len(self._samples), self._bad_log)
        with seeded_globals(generator):
            return [transform(image) for transform in self._transforms], hidden, index
