"""Training batches of images with boxes: mirrored, resized and cut at random by torchvision, boxes with them.

B samples of a batch, C channels, S image size, M most boxes of a sample in it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

from d2v.modalities.common import sampling
from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.image import augment
from d2v.modalities.image.detection.samples import LEAST, BoxedSamples
from d2v.modalities.image.frontend import MODALITY
from d2v.types import View


class BoxedBatches:
    """Augmented images with boxes: a pure function of (seed, step, part, parts)."""

    def __init__(
        self,
        samples: BoxedSamples,
        indices: np.ndarray,
        classes: list[np.ndarray],
        *,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """`classes`: of the boxes of each sample. ValueError: fewer samples than one batch."""
        self.sampler = sampling.Sampler(len(indices), batch_size, seed)
        self._samples, self._indices, self._classes = samples, indices, classes
        self._seed, self._bad_log = seed, bad_log
        self._transform = transform(
            samples.frontend.image_size, flip=samples.config.flip, scale_jitter=samples.config.scale_jitter
        )

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: pixel_values (B, C, S, S), labels (B, M, 5); the sample ids."""
        batch = self.sampler(step)
        rows = range(len(batch))[sampling.share(len(batch), part, parts)]
        images, boxes, ids = [], [], []
        for generator, row in zip(sampling.generators(self._seed, step, rows), rows, strict=True):
            pixels, placed, name = self._row(generator, int(batch[row]))
            images.append(pixels)
            boxes.append(placed)
            ids.append(name)
        labels = pad_sequence(boxes, batch_first=True, padding_value=-1.0)  # (B, M, 5)
        return [View(MODALITY, {"pixel_values": torch.stack(images)}, labels=labels)], ids

    def _row(self, generator: np.random.Generator, place: int) -> tuple[Tensor, Tensor, str]:
        """Augmented image (C, S, S), its boxes and classes (n, 5), sample id."""
        samples = self._samples
        candidates = self._indices[sampling.following(place, len(self._indices))]
        index, image = sampling.readable(
            samples.ids, candidates, self._image, self._bad_log, "100 images in a row cannot be read"
        )
        sample = {
            "image": Image(samples.normalised(image)),
            "boxes": BoundingBoxes(  # type: ignore[call-overload]
                torch.tensor(samples.boxes[index], dtype=torch.float32), format="XYXY", canvas_size=augment.size(image)
            ),
            "labels": torch.tensor(self._classes[index], dtype=torch.float32),
        }
        with seeded_globals(generator):
            sample = self._transform(sample)
        boxes = sample["boxes"].as_subclass(Tensor)
        return sample["image"].as_subclass(Tensor), torch.cat([boxes, sample["labels"][:, None]], 1), samples.ids[index]

    def _image(self, index: int) -> Any:
        """The decoded image of a sample. UnreadableError: it is damaged, or would have no pixel across."""
        size, least = self._samples.frontend.image_size, self._samples.config.scale_jitter[0]
        height, width = self._samples.sizes[index]
        if min(height, width) * min(size / height, size / width) * least < 1:
            raise UnreadableError(f"{width} x {height} pixels have none across at data.scale_jitter {least}")
        return self._samples.image(index)


def transform(image_size: int, *, flip: float, scale_jitter: list[float]) -> v2.Compose:
    """Mirrored, resized to a random share of what fits, cut or filled with zeros at random to S x S.

    Boxes are moved with the image and cut where it ends; what is then a line is left out. Draws from torch's global
    generator.
    """
    size = (image_size, image_size)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            v2.ScaleJitter(size, (scale_jitter[0], scale_jitter[1]), interpolation=augment.BICUBIC, antialias=True),
            v2.RandomCrop(size, pad_if_needed=True, fill=0),
            v2.SanitizeBoundingBoxes(min_size=LEAST, labels_getter=lambda sample: sample["labels"]),
        ]
    )
