"""Files to signals.

B samples, S numbers of the longest signal of a batch, T tokens.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v.modalities.common.data_report import Report
from d2v.protocols import Rows
from d2v.types import View
from mylab.sensor.config import DataConfig, FrontendConfig, ReadConfig


class Files(list):
    """Paths of a split, unread."""

    def select(self, indices: range) -> "Files":
        """Some of them."""
        return Files(self[index] for index in indices)


class Samples:
    """The readable signals of a split."""

    raw_name = "mean, spread, slope"
    cut = None

    @staticmethod
    def open(config: ReadConfig, split: str) -> Files:
        """Paths below the folder. ValueError: there are none."""
        folder = Path(config.path)
        folder = folder / split if (folder / split).is_dir() else folder
        paths = Files(sorted(folder.rglob("*.npy")))
        if not paths:
            raise ValueError(f"data.path {config.path} has no .npy files")
        return paths

    def __init__(
        self, config: ReadConfig, frontend: FrontendConfig, *, split: str, folder: Path, rows: Rows | None = None
    ):
        paths = self.open(config, split) if rows is None else rows.dataset
        self.frontend, self.report = frontend, Report("sensor", found=len(paths), usable=0)
        self._signals: list[np.ndarray] = []
        self.ids: list[str] = []
        labels: list[str] = []
        for path in paths:
            try:
                signal = np.load(path, allow_pickle=False).astype(np.float32)
            except (OSError, ValueError) as error:
                self.report.unreadable.append((path.name, str(error)))
                continue
            self._signals.append((signal - signal.mean()) / (signal.std() + 1e-6))
            self.ids.append(f"{path.parent.name}/{path.name}")
            labels.append(path.parent.name)
        self.classes = sorted(set(labels))
        self._labels = np.array([self.classes.index(label) for label in labels])
        self.lengths = np.array([len(signal) for signal in self._signals])
        self.report.usable = len(self.ids)
        if rows is None:
            self.report.check(config.max_bad_share, config.path)

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> np.ndarray:
        """The class of each signal. ValueError: another column."""
        if name != "label":
            raise ValueError(f"there is no column {name!r}; the columns are label")
        return self._labels

    def signal(self, index: int) -> np.ndarray:
        """One signal, (S,)."""
        return self._signals[index]

    def view(self, indices: Iterable[int]) -> View:
        """Whole signals, padded."""
        return collate([self.signal(int(index)) for index in indices], self.frontend)

    def picture(self, index: int) -> str:
        """Its first numbers."""
        return " ".join(f"{number:.2f}" for number in self.signal(index)[:8])

    def windows(self, index: int, overlap: float, batch_size: int) -> Iterator[tuple[View, Tensor]]:
        """Nothing is ever cut."""
        raise ValueError("a signal is read whole")

    def raw(self, indices: Iterable[int]) -> np.ndarray:
        """(B, 3)."""
        signals = [self.signal(int(index)) for index in indices]
        return np.array([[x.mean(), np.abs(np.diff(x)).mean(), np.abs(x).max()] for x in signals])


def collate(signals: list[np.ndarray], frontend: FrontendConfig) -> View:
    """sensor_values (B, S) with attention_mask, and padding (B, T)."""
    longest = max(len(signal) for signal in signals)
    values, real = torch.zeros(len(signals), longest), torch.zeros(len(signals), longest, dtype=torch.long)
    for row, signal in enumerate(signals):
        values[row, : len(signal)] = torch.from_numpy(signal)
        real[row, : len(signal)] = 1
    size = frontend.patch_size
    padding = ~real.bool().unfold(1, size, size).all(dim=2)
    return View("mylab.sensor", {"sensor_values": values, "attention_mask": real}, padding)


def prepare(data: Any, frontend: FrontendConfig, folder: Path, seed: int) -> None:
    """Nothing is made from the data."""


def inherit(data: Any, source: Path, former: dict | None) -> None:
    """Nothing of the data is learned."""


def save_preprocessor(folder: Path, samples_folder: Path, data: DataConfig, frontend: FrontendConfig) -> None:
    """How a signal is prepared."""
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
