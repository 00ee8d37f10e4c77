"""Images with boxes, checked once: boxes lie inside their images and are no lines; and how an image fits a square.

B samples of a batch, C channels, S image size, n boxes of an image.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V2

from d2v.modalities.image import augment
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.source import open_boxes, open_images
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.modalities.image.samples import Samples
from d2v.protocols import Rows
from d2v.types import View

LEAST = 2.0  # pixels of a side of a box
BEYOND = 1.0  # pixels that a box may reach outside of its image unsaid: some count from 1, some to the last pixel


class WholeImages(Samples):
    """The usable images of one split, which are read whole: the longer side fits, the rest is filled."""

    config: Any  # a DetectionConfig
    open = staticmethod(open_images)  # type: ignore[assignment]

    def __init__(
        self,
        config: DetectionConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """ValueError: as Samples."""
        super().__init__(config, frontend, split=split, folder=folder, rows=rows)  # type: ignore[arg-type]
        self.sizes = [augment.size(self._source(int(row))) for row in self._rows]  # height, width

    def scale(self, index: int) -> np.ndarray:
        """(4,) what coordinates of the image are multiplied by in its view."""
        height, width = self.sizes[index]
        new = fitting(height, width, self.frontend.image_size)
        return np.array([new[1] / width, new[0] / height] * 2)

    def view(self, indices: Iterable[int]) -> View:
        """Resized such that the longer side is S, normalised, and zero below or to the right; (B, C, S, S).

        UnreadableError: an image can no longer be read.
        """
        size = self.frontend.image_size
        rows = []
        for index in indices:
            image = self.image(index)
            height, width = fitting(*augment.size(image), size)
            image = V2.resize(image, [height, width], interpolation=augment.BICUBIC, antialias=True)
            pixels = self.normalised(image)
            rows.append(F.pad(pixels, (0, size - width, 0, size - height)))
        return View(MODALITY, {"pixel_values": torch.stack(rows)})

    def normalised(self, image: Any) -> Tensor:
        """(C, H, W) of an image."""
        return augment.normalise([image], self.config.mean, self.config.std)[0]


class BoxedSamples(WholeImages):
    """Those with boxes (n, 4) and their names."""

    open = staticmethod(open_boxes)  # type: ignore[assignment]

    def __init__(
        self,
        config: DetectionConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """ValueError: as Samples and open_boxes; too many boxes that cannot be right, or none that can be used."""
        super().__init__(config, frontend, split=split, folder=folder, rows=rows)
        self.names: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []  # left, top, right, bottom, in pixels of the image
        given = [np.asarray(boxes, dtype=float).reshape(-1, 4) for boxes in self.column("boxes")]
        self._check_sizes()
        self._check_sides(given)
        thin = []
        for index, (boxes, names) in enumerate(zip(given, self.column("names"), strict=True)):
            height, width = self.sizes[index]
            boxes = boxes.clip(0, [width, height, width, height])
            lengths = boxes[:, 2:] - boxes[:, :2]
            whole = (lengths >= LEAST).all(axis=1)
            thin += [self.ids[index]] * int((~whole & (lengths >= 0).all(axis=1)).sum())
            self.boxes.append(boxes[whole])
            self.names.append(np.array(names, dtype=object)[whole])
        self._say(thin, in_shares=max((boxes.max(initial=0) for boxes in given), default=0) <= 1)

    def _check_sizes(self) -> None:
        """ValueError: too many images are of another size than their annotations say."""
        others = []
        for index, said in enumerate(self.column("size")):
            height, width = self.sizes[index]
            if said and tuple(said) != (width, height):
                turned = " (turned by its EXIF, or width for height)" if tuple(said) == (height, width) else ""
                others.append(
                    f"{self.ids[index]} has {width} x {height} pixels{turned}, its boxes are of {said[0]} x {said[1]}"
                )
        self._doubt("images of another size than their annotations say", others, len(self), "boxes stay as they are")

    def _check_sides(self, given: list[np.ndarray]) -> None:
        """ValueError: too many boxes end before they begin, or reach outside of their images."""
        inverted, outside = [], []
        for index, boxes in enumerate(given):
            height, width = self.sizes[index]
            over = np.maximum(-boxes, boxes - [width, height, width, height]).max(axis=1, initial=-np.inf) > BEYOND
            ends_first = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
            inverted += [f"{self.ids[index]} has {_shown(box)}" for box in boxes[ends_first]]
            of = f"{self.ids[index]} of {width} x {height} pixels"
            outside += [f"{of} has one of {_shown(box)}" for box in boxes[over]]
        total = sum(map(len, given))
        hint = "they are left, top, right and bottom, no widths and heights"
        self._doubt(f"boxes that end before they begin ({hint})", inverted, total, "they are left out")
        self._doubt("boxes that reach outside of their images", outside, total, "they are cut there")

    def _doubt(self, what: str, found: list[str], total: int, then: str) -> None:
        """ValueError: more of `total` than data.max_bad_share; fewer are a note."""
        if not found:
            return
        line = f"{what}: {len(found)} of {total}: {found[0]}"
        if len(found) > self.config.max_bad_share * total:
            raise ValueError(f"{line}; data.max_bad_share is {self.config.max_bad_share:.1%}")
        self.report.notes.append(f"{line}; {then}")

    def _say(self, thin: list[str], *, in_shares: bool) -> None:
        """What the boxes are, for the report; `in_shares`: none reaches beyond 1. ValueError: none is left."""
        counts: Counter[str] = Counter()
        for names in self.names:
            counts.update(map(str, names))
        some = f"{len(thin)} thinner than {LEAST:g} pixels ({', '.join(list(dict.fromkeys(thin))[:5])})"
        if not counts:
            cure = "; sides from 0 to 1 may be shares of the image: give pixels" if thin and in_shares else ""
            raise ValueError(
                f"data.path {self.config.path} has no box that can be used{f': {some}' if thin else ''}{cure}"
            )
        classes = ", ".join(f"{name} {count}" for name, count in counts.most_common(20))
        without = [name for name, boxes in zip(self.ids, self.boxes, strict=True) if not len(boxes)]
        self.report.notes.append(f"boxes: {counts.total()} of {len(counts)} classes: {classes}")
        if thin:
            self.report.notes.append(f"boxes left out: {some}")
        if without:
            self.report.notes.append(f"images without boxes: {len(without)}: {', '.join(without[:5])}")


def _shown(box: np.ndarray) -> str:
    return ",".join(f"{side:g}" for side in box)


def fitting(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `size`, as transformers' image processors round them."""
    ratio = min(size / height, size / width)
    return max(1, int(height * ratio)), max(1, int(width * ratio))
