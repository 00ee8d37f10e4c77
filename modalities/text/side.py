"""Text as one side of pairs: each row whole, up to data.block_size tokens, changed if data.views asks for it.

B rows of a batch, T tokens of the longest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from d2v.modalities.text import corpus as corpora
from d2v.modalities.text.config import DataConfig, ReadConfig, check
from d2v.modalities.text.frontend import FrontendConfig
from d2v.modalities.text.samples import Samples, collate, prepare_tokenizer
from d2v.modalities.text.views import VIEWS, AugmentConfig, made
from d2v.settings import section, setting
from d2v.types import View


@dataclass
class SideConfig(ReadConfig):
    """How the text of pairs is read; what joins rows to blocks or hides tokens is not of pairs."""

    min_tokens: int = setting(1, "Rows of fewer tokens are left out.", least=1, limit=1000)
    views: list[str] = setting([], f"How a row is changed: {', '.join(VIEWS[:-1])} or {VIEWS[-1]}; empty: it is not.")
    augment: AugmentConfig = section(AugmentConfig, "How views are made.")


class Side:
    """A d2v.protocols.Side, whose keys tell rows of the very same tokens."""

    def __init__(
        self, samples: Samples, data: DataConfig, frontend: FrontendConfig, bad_log: Callable[[str, str], None]
    ):
        self._samples, self._data, self._frontend = samples, data, frontend
        known: dict[bytes, int] = {}
        rows = (samples.row(index) for index in range(len(samples)))
        self.keys = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows], dtype=np.int64)  # (n,)

    @staticmethod
    def open(config: ReadConfig, split: str) -> None:
        """None: text stands in a column of the other side's rows."""

    @staticmethod
    def column(config: ReadConfig, source: datasets.Dataset) -> str:
        """The column of the text. ValueError: there is none."""
        return corpora.text_column(source, config.path, config.text, config.label)

    @staticmethod
    def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int, source: Callable[[], Any]) -> None:
        """The tokenizer of a run. ValueError: also settings that contradict one another."""
        check(data)
        prepare_tokenizer(data, frontend, folder, source)

    def width(self, indices: np.ndarray) -> int:
        """The most tokens that views of these rows can have."""
        return int(self._samples.lengths[indices].max())

    def read(self, index: int, generator: np.random.Generator, width: int) -> np.ndarray:
        """A row as <s> ... </s>, (T,)."""
        row = self._samples.row(index)
        for name in self._data.views:
            row = made(name, row, generator, self._data.augment)
        return row if len(row) <= width else np.append(row[: width - 1], row[-1])

    def view(self, read: Sequence[np.ndarray], width: int) -> View:
        """Rows as input_ids (B, T)."""
        return collate(read, self._frontend, width)
