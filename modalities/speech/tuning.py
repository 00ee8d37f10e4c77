"""What fine-tuning on classes and on transcripts share: labelled clips in which time and channels are hidden.

B samples of a batch, T tokens, D model width, L letters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.modalities.common import labels, masking, sampling
from d2v.modalities.speech import audio
from d2v.modalities.speech.config import TuningConfig
from d2v.modalities.speech.frontend import MODALITY, FrontendConfig, lengths
from d2v.modalities.speech.samples import collate
from d2v.types import Mask, View


class LabelledBatches:
    """Labelled clips of similar length: a pure function of (seed, step, part, parts)."""

    def __init__(
        self,
        opened: labels.Opened,
        data: TuningConfig,
        frontend: FrontendConfig,
        *,
        dim: int,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """`dim`: the model's width, of which channels are hidden. ValueError: fewer clips than one batch."""
        self._opened, self._data, self._frontend = opened, data, frontend
        self._dim, self._seed, self._bad_log = dim, seed, bad_log
        self._longest = round(data.max_seconds * frontend.sample_rate)
        self._sizes = np.minimum(opened.train.lengths[opened.indices], self._longest)  # samples
        self.sampler = sampling.Sampler(len(opened.indices), batch_size, seed, lengths=self._sizes)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch, as wide as the whole, with labels (B,) or (B, L); the sample ids."""
        batch = self.sampler(step)
        rows = range(len(batch))[sampling.share(len(batch), part, parts)]
        generators = sampling.generators(self._seed, step, rows)
        waves, targets, ids = [], [], []
        for generator, row in zip(generators, rows, strict=True):
            wave, target, name = self._clip(generator, np.roll(batch, -row))
            waves.append(wave)
            targets.append(target)
            ids.append(name)
        inputs, padding = collate(waves, self._frontend, int(self._sizes[batch].max()))
        tokens = lengths(self._frontend, inputs["input_values"].shape[1])
        sizes = [lengths(self._frontend, len(wave)) for wave in waves]
        mask = self._mask(generators, sizes, tokens)
        return [View(MODALITY, inputs, padding, mask, stacked(targets))], ids

    def _clip(self, generator: np.random.Generator, places: np.ndarray) -> tuple[np.ndarray, Any, str]:
        """Clip, label and id of the first of `places` that can be decoded: another of the batch replaces a bad one."""
        opened = self._opened

        def read(index: int) -> np.ndarray:
            wave = opened.train.clip(index)
            size = min(len(wave), int(opened.train.lengths[index]), self._longest)  # the header may have promised less
            return audio.anywhere(wave, size, generator)

        none = f"none of the {len(places)} clips of a batch can be read"
        index, wave = sampling.readable(opened.train.ids, opened.indices[places], read, self._bad_log, none)
        return wave, opened.labels[index], opened.train.ids[index]

    def _mask(self, generators: list[np.random.Generator], sizes: Sequence[int], tokens: int) -> Mask | None:
        """Spans over the tokens of each row, `sizes` of them, and over the channels; None if nothing is hidden.

        As in wav2vec 2.0 (arXiv 2006.11477, section 4.4).
        """
        data = self._data
        if not data.mask_prob and not data.channel_prob:
            return None
        hidden, channels = [], []
        for generator, size in zip(generators, sizes, strict=True):
            spans = np.zeros(size, dtype=bool)
            if data.mask_prob:
                spans = masking.span(generator, size, data.mask_prob, data.mask_length)
            hidden.append(spans)
            if data.channel_prob:
                spans = masking.span(generator, self._dim, data.channel_prob, data.channel_length, min_spans=0)
                channels.append(spans)
        zero = torch.from_numpy(np.stack(channels)) if channels else None  # (B, D)
        return Mask(torch.from_numpy(masking.stacked(hidden, tokens)), None, zero)


def stacked(targets: Sequence[Any]) -> Tensor:
    """Classes or numbers -> (B,); letters of each sample -> (B, L), -100 behind the shorter ones."""
    if np.ndim(targets[0]) == 0:
        return torch.from_numpy(np.asarray(targets))
    return pad_sequence([torch.from_numpy(target) for target in targets], batch_first=True, padding_value=-100)
