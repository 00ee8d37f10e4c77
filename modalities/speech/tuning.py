"""What fine-tuning on classes and on transcripts share: batches of labelled clips in which time and channels are hidden.

B samples of a batch, T tokens, D model width, L letters.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
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
        self._opened, self._data, self._frontend, self._dim, self._seed, self._bad_log = (
            opened,
            data,
            frontend,
            dim,
            seed,
            bad_log,
        )
        self._longest = round(data.max_seconds * frontend.sample_rate)
        self._sizes = np.minimum(opened.train.lengths[opened.indices], self._longest)  # samples
        self.sampler = sampling.Sampler(len(opened.indices), batch_size, seed, lengths=self._sizes)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch, as wide as the whole batch, with labels (B,) or (B, L); the sample ids."""
        batch = self.sampler(step)
        rows = range(len(batch))[sampling.share(len(batch), part, parts)]
        generators = masking.generators(self._seed, step, rows)
        drawn = [self._read(generator, np.roll(batch, -row)) for generator, row in zip(generators, rows, strict=True)]
        waves, targets, ids = zip(*drawn, strict=True)
        inputs, padding = collate(waves, self._frontend, int(self._sizes[batch].max()))
        tokens = lengths(self._frontend, inputs["input_values"].shape[1])
        own = [lengths(self._frontend, len(wave)) for wave in waves]
        mask = self._mask(generators, own, tokens)
        return [View(MODALITY, inputs, padding, mask, stacked(targets))], list(ids)

    def _read(self, generator: np.random.Generator, places: np.ndarray) -> tuple[np.ndarray, Any, str]:
        """Clip, label and id of the first of `places` that can be read: another of the batch stands in for a bad one."""
        opened = self._opened
        for index in opened.indices[places].tolist():
            name = opened.train.ids[index]
            try:
                wave = opened.train.wave(index)
            except (audio.UnreadableError, OSError) as error:
                self._bad_log(name, str(error))
                continue
            size = min(len(wave), int(opened.train.lengths[index]), self._longest)  # the header may have promised less
            return audio.anywhere(wave, size, generator), opened.labels[index], name
        raise ValueError(
            f"none of the {len(places)} clips of a batch can be read, the last is {name}: was data.path changed or unmounted?"
        )

    def _mask(self, generators: list[np.random.Generator], own: Sequence[int], tokens: int) -> Mask | None:
        """Spans of each row's own tokens, and of the channels, as in wav2vec 2.0 (arXiv 2006.11477, section 4.4); None if nothing is hidden."""
        data = self._data
        if not data.mask_prob and not data.channel_prob:
            return None
        hidden = [np.zeros(count, dtype=bool) for count in own]
        if data.mask_prob:
            hidden = [
                masking.span(generator, count, data.mask_prob, data.mask_length)
                for generator, count in zip(generators, own, strict=True)
            ]
        channels = None
        if data.channel_prob:
            drawn = [
                masking.span(generator, self._dim, data.channel_prob, data.channel_length, min_spans=0)
                for generator in generators
            ]
            channels = torch.from_numpy(np.stack(drawn))  # (B, D)
        return Mask(torch.from_numpy(masking.stacked(hidden, tokens)), None, channels)


def stacked(targets: Sequence[Any]) -> Tensor:
    """Classes or numbers -> (B,); letters of each sample -> (B, L), -100 behind the shorter ones."""
    if np.ndim(targets[0]) == 0:
        return torch.from_numpy(np.asarray(targets))
    return pad_sequence([torch.from_numpy(target) for target in targets], batch_first=True, padding_value=-100)


def check_start(data: TuningConfig, init_from: str) -> None:
    """ValueError: an export, if it is (still) there, whose encoder was trained on waveforms that were normalised otherwise."""
    for place in (Path(init_from) / "export", Path(init_from)):
        file = place / "preprocessor_config.json"
        if init_from and file.is_file():
            theirs = json.loads(file.read_text())["do_normalize"]
            if theirs != data.normalize:
                raise ValueError(
                    f"data.normalize is {data.normalize}; the encoder of {init_from} was trained with {theirs}"
                )
            return
