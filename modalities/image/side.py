"""Images as one side of pairs: each in one augmented view, of which nothing is hidden.

B images of a batch, C channels, S image size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from d2v.modalities.common import tables
from d2v.modalities.common.beside import with_texts
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.image import augment, views
from d2v.modalities.image.batches import transform
from d2v.modalities.image.config import DataConfig, ReadConfig, check_reading
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.modalities.image.samples import Samples
from d2v.modalities.image.views import VIEWS
from d2v.settings import setting
from d2v.types import View


@dataclass
class SideConfig(ReadConfig):
    """How the images of pairs are read; what hides patches is not of pairs."""

    views: list[str] = setting(
        [], f"The augmentation of the view: {', '.join(VIEWS[:-1])} or {VIEWS[-1]}; empty: the ordinary one."
    )
    view_scale: list[float] | None = setting(
        None,
        "Least and greatest share of the area that its crops have; null: as published.",
        above=0,
        most=1,
        count=2,
        only={"views": True},
    )
    color_strength: float = setting(
        1.0, "What its changes of colour are multiplied by.", least=0, limit=1000, only={"views": True}
    )
    blur: bool = setting(True, "false: it is not blurred, as usual for images of 32 pixels.", only={"views": True})


class Side:
    """A d2v.protocols.Side, whose keys tell rows of the very same file."""

    def __init__(
        self, samples: Samples, data: DataConfig, frontend: FrontendConfig, bad_log: Callable[[str, str], None]
    ):
        self._samples, self._data = samples, data
        self.keys = samples.files()
        self._transform: Callable[[Any], Any] = transform(data, frontend)
        if data.views:
            (self._transform,) = views.transforms(data, frontend.image_size)

    @staticmethod
    def open(config: ReadConfig, split: str) -> datasets.Dataset:
        """The rows of a split, unread, with the captions that lie beside their files. ValueError: there are none."""
        return with_texts(Samples.open(config, split))

    @staticmethod
    def column(config: ReadConfig, source: datasets.Dataset) -> str:
        """The column of the images. ValueError: there is none."""
        return tables.media_column(source, "image")

    @staticmethod
    def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int, source: Callable[[], Any]) -> None:
        """ValueError: settings that contradict one another."""
        views.check(data, frontend)
        check_reading(data, frontend)

    def width(self, indices: np.ndarray) -> int:
        """0: all views are of one size."""
        return 0

    def read(self, index: int, generator: np.random.Generator, width: int) -> Tensor:
        """An augmented image. UnreadableError: it is damaged."""
        image = self._samples.image(index)
        with seeded_globals(generator):
            return self._transform(image)

    def view(self, read: Sequence[Any], width: int) -> View:
        """Images as pixel_values (B, C, S, S)."""
        return View(MODALITY, {"pixel_values": augment.normalise(list(read), self._data.mean, self._data.std)})
