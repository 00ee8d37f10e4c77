"""Speech as one side of pairs: each clip whole, up to data.max_seconds of it, changed if data.views asks for it.

B clips of a batch, S audio samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from d2v.modalities.common import tables
from d2v.modalities.common.beside import with_texts
from d2v.modalities.speech import audio, samples
from d2v.modalities.speech.batches import readable
from d2v.modalities.speech.config import DataConfig, ReadConfig
from d2v.modalities.speech.frontend import MODALITY, FrontendConfig, receptive_field
from d2v.modalities.speech.samples import MIN_TOKENS, Samples, collate
from d2v.modalities.speech.views import VIEWS, AugmentConfig, Views
from d2v.settings import section, setting
from d2v.types import View


@dataclass
class SideConfig(ReadConfig):
    """How the speech of pairs is read; what joins clips or hides tokens is not of pairs."""

    views: list[str] = setting(
        [],
        f"How a clip is changed: {', '.join(VIEWS[:-1])} or {VIEWS[-1]}; empty: it is not, and it is whole.",
    )
    augment: AugmentConfig = section(AugmentConfig, "How views are made.")


class Side:
    """A d2v.protocols.Side, whose keys tell rows of the very same file."""

    def __init__(
        self, samples: Samples, data: DataConfig, frontend: FrontendConfig, bad_log: Callable[[str, str], None]
    ):
        self._samples, self._frontend, self._bad_log = samples, frontend, bad_log
        self.keys = samples.files()
        self._longest = round(data.max_seconds * frontend.sample_rate)
        self._sizes = np.minimum(samples.lengths, self._longest)  # (n,)
        self._views = None
        if data.views:
            shortest = receptive_field(frontend, MIN_TOKENS)
            self._views = Views(data.views, data.augment, rate=frontend.sample_rate, shortest=shortest)

    @staticmethod
    def open(config: ReadConfig, split: str) -> datasets.Dataset:
        """The rows of a split, unread, with the transcripts that lie beside their files. ValueError: there are none."""
        return with_texts(Samples.open(config, split))

    @staticmethod
    def column(config: ReadConfig, source: datasets.Dataset) -> str:
        """The column of the recordings. ValueError: there is none."""
        return tables.media_column(source, "audio")

    @staticmethod
    def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int, source: Callable[[], Any]) -> None:
        """ValueError: clips would be too short."""
        samples.prepare(data, frontend, folder, seed)

    def width(self, indices: np.ndarray) -> int:
        """The most audio samples that views of these clips can have."""
        sizes = self._sizes[indices]
        return int(sizes.max()) if self._views is None else self._views.width(sizes)

    def read(self, index: int, generator: np.random.Generator, width: int) -> np.ndarray:
        """A clip, of a long one a random part, (S,). UnreadableError: it can no longer be decoded."""
        wave = audio.anywhere(self._samples.clip(index), int(self._sizes[index]), generator)
        if self._views is not None:
            (wave,) = self._views(wave, generator, self._any)
        return audio.anywhere(wave, width, generator)

    def view(self, read: Sequence[np.ndarray], width: int) -> View:
        """Clips as input_values (B, S)."""
        inputs, padding = collate(read, self._frontend, width)
        return View(MODALITY, inputs, padding)

    def _any(self, generator: np.random.Generator) -> np.ndarray:
        """Some clip of the data, which may serve as noise; of a long one data.max_seconds."""

        def take(wave: np.ndarray | audio.Long) -> np.ndarray:
            return audio.anywhere(wave, self._longest, generator)

        return readable(self._samples, int(generator.integers(len(self._samples))), 1, take, self._bad_log)[1]
