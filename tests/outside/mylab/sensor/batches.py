"""Masked signals, or noisy views: a function of (seed, step, row)."""

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.protocols import BadLog
from d2v.types import Mask, View
from mylab.sensor.config import DataConfig, FrontendConfig
from mylab.sensor.samples import Samples, collate


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: BadLog | None = None,
) -> "SensorBatches":
    """Training batches of `samples`."""
    return SensorBatches(samples, data, frontend, batch_size, seed)


class SensorBatches:
    """One masked view, or as many noisy ones as data.views names."""

    def __init__(self, samples: Samples, data: DataConfig, frontend: FrontendConfig, batch_size: int, seed: int):
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self._samples, self._data, self._frontend, self._seed = samples, data, frontend, seed

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows."""
        batch = self.sampler(step)
        rows = sampling.share(len(batch), part, parts)
        generators = sampling.generators(self._seed, step, range(len(batch))[rows])
        indices = [int(index) for index in batch[rows]]
        signals = [self._samples.signal(index) for index in indices]
        numbers, names = torch.tensor(indices), [self._samples.ids[index] for index in indices]
        if self._data.views:
            return [self._noisy(signals, generators, numbers) for _ in self._data.views], names
        view = collate(signals, self._frontend)
        tokens = [len(signal) // self._frontend.patch_size for signal in signals]
        hidden = [
            masking.span(generator, count, self._data.mask_prob, self._data.mask_length)
            for generator, count in zip(generators, tokens, strict=True)
        ]
        mask = Mask(torch.from_numpy(masking.stacked(hidden, max(tokens))))
        return [view._replace(mask=mask, indices=numbers)], names

    def _noisy(self, signals: list[np.ndarray], generators: list[np.random.Generator], numbers: torch.Tensor) -> View:
        noisy = []
        for signal, generator in zip(signals, generators, strict=True):
            noisy.append(signal + 0.1 * generator.standard_normal(len(signal), dtype=np.float32))
        return collate(noisy, self._frontend)._replace(indices=numbers)
