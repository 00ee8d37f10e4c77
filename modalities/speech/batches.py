"""Training batches of speech, masked or of several views: pure functions of (seed, step, part, parts).

B samples of a batch, S audio samples, T tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.modalities.speech import audio
from d2v.modalities.speech.config import DataConfig
from d2v.modalities.speech.frontend import MODALITY, FrontendConfig, lengths, receptive_field
from d2v.modalities.speech.samples import MIN_TOKENS, Samples, collate
from d2v.modalities.speech.views import Views
from d2v.types import Mask, View

ORDER = 0x57EA  # sets the shuffle of packed clips apart from the sampler's


def _ignore(sample: str, reason: str) -> None:
    """No log was asked for."""


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = _ignore,
) -> "MaskedBatches | ViewBatches":
    """Training batches of `samples`; `bad_log(id, reason)` hears of clips that can no longer be read."""
    make = ViewBatches if data.views else MaskedBatches
    return make(samples, data, frontend, batch_size=batch_size, seed=seed, bad_log=bad_log)


class MaskedBatches:
    """Masked batches of clips, or of streams of equal length into which an epoch's clips are joined.

    A row's length is known before its file is read, so that every process can draw the masks of the whole batch and equalise them.
    """

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
        """ValueError: less audio than one batch."""
        self._samples, self._data, self._frontend, self._seed, self._bad_log = samples, data, frontend, seed, bad_log
        self._stream = round(data.pack_seconds * frontend.sample_rate)  # samples; 0: no packing
        self._layout: tuple[int, np.ndarray, np.ndarray] | None = None  # the last epoch's; only saves time
        if self._stream:
            num_streams = int(samples.lengths.sum()) // self._stream
            if num_streams < batch_size:
                raise ValueError(
                    f"data has {num_streams} streams of data.pack_seconds={data.pack_seconds} ({samples.report.amount}), "
                    f"fewer than one batch: train.batch_size is {batch_size}"
                )
            self._sizes = np.full(num_streams, self._stream)  # (items,)
        else:
            self._sizes = np.minimum(samples.lengths, round(data.max_seconds * frontend.sample_rate))
        by_length = None if self._stream else self._sizes
        self.sampler = sampling.Sampler(len(self._sizes), batch_size, seed, lengths=by_length)
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: one view, input_values (B, S) and M masks of each; the sample ids."""
        items = self.sampler(step)
        generators = masking.generators(self._seed, step, range(len(items)))
        hidden = self._masks(step, items, generators)
        rows = range(len(items))[sampling.share(len(items), part, parts)]
        read = self._read_stream if self._stream else self._read_clip
        waves, ids = zip(*(read(step, int(items[row]), generators[row]) for row in rows), strict=True)
        # as wide as the whole batch: positions depend on how many padded frames follow, and parts must not
        inputs, padding = collate(waves, self._frontend, int(self._sizes[items].max()))
        tokens = lengths(self._frontend, inputs["input_values"].shape[1])  # T
        mine = masking.stacked([mask for row in rows for mask in hidden[row]], tokens)  # (N, T)
        kept = max(int((~mask).sum()) for masks in hidden for mask in masks)  # K
        keep = None if self._data.mask_kind == "span" else torch.from_numpy(masking.visible(mine, kept))
        mask = Mask(torch.from_numpy(mine), keep)
        return [View(MODALITY, inputs, padding, mask)], list(ids)

    def _masks(self, step: int, items: np.ndarray, generators: list[np.random.Generator]) -> list[list[np.ndarray]]:
        """Hidden tokens of every row of the global batch, M of (T_row,) bool each."""
        data = self._data
        tokens = lengths(self._frontend, self._sizes[items])  # (rows,)
        drawn = list(zip(generators, tokens.tolist(), strict=True))
        if data.mask_kind == "block":
            return [
                [masking.block_1d(g, t, data.mask_prob, data.mask_length, data.mask_adjust) for _ in range(data.masks)]
                for g, t in drawn
            ]
        if data.mask_kind == "random":
            return [[masking.scattered(g, t, data.mask_prob) for _ in range(data.masks)] for g, t in drawn]
        hidden = [
            masking.span(generator, t, data.mask_prob, data.mask_length, min_spans=data.min_masks)
            for generator, t in drawn
        ]
        if data.equalise:
            (common,) = masking.generators(self._seed, step, [len(items)])  # no row's own
            hidden = masking.equalise(common, hidden)
        return [[row] for row in hidden]

    def _read_clip(self, step: int, index: int, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        size = int(self._sizes[index])
        wave, read = readable(self._samples, index, size, self._bad_log)
        return audio.anywhere(wave, size, generator), self._samples.ids[read]

    def _read_stream(self, step: int, stream: int, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        """Stream `stream` of the step's epoch: a cut of all clips in that epoch's order; the ids of its clips joined by +."""
        order, ends = self._order(step // self.steps_per_epoch)
        start = stream * self._stream
        stop = start + self._stream
        waves, names = [], []
        for place in range(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1):
            size = int(self._samples.lengths[order[place]])
            wave, read = readable(self._samples, int(order[place]), size, self._bad_log)
            begin = int(ends[place]) - size  # of the clip in the epoch
            waves.append(wave[max(0, start - begin) : min(size, stop - begin)])
            names.append(self._samples.ids[read])
        return np.concatenate(waves), "+".join(names)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of an epoch in their order, and the sample at which each ends."""
        if self._layout is None or self._layout[0] != epoch:
            order = np.random.default_rng((self._seed, ORDER, epoch)).permutation(len(self._samples))
            self._layout = (epoch, order, np.cumsum(self._samples.lengths[order]))
        return self._layout[1:]


class ViewBatches:
    """Clips of similar length, each read once and seen in one view for each name in data.views; a view draws from a generator of its own."""

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
        """ValueError: fewer clips than one batch."""
        self._samples, self._data, self._frontend, self._seed, self._bad_log = samples, data, frontend, seed, bad_log
        self._views = Views(
            data.views, data.augment, rate=frontend.sample_rate, shortest=receptive_field(frontend, MIN_TOKENS)
        )
        self._sizes = np.minimum(samples.lengths, round(data.max_seconds * frontend.sample_rate))
        longest = round(data.augment.seconds * frontend.sample_rate)  # clips above it differ no more
        self.sampler = sampling.Sampler(len(samples), batch_size, seed, lengths=np.minimum(self._sizes, longest))
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: input_values (B, S) of each view, S the same for all, and the clips' numbers; the sample ids."""
        items = self.sampler(step)
        rows = range(len(items))[sampling.share(len(items), part, parts)]
        generators = masking.generators(self._seed, step, rows)
        drawn = [self._row(int(items[row]), own) for row, own in zip(rows, generators, strict=True)]
        waves, read = zip(*drawn, strict=True)
        width = self._views.width(self._sizes[items])  # of the whole batch: positions depend on it, and parts must not
        indices = torch.tensor(read)
        views = [
            View(
                MODALITY,
                *collate(of_view, self._frontend, width),
                self._mask(of_view, generators, width),
                indices=indices,
            )
            for of_view in zip(*waves, strict=True)
        ]
        return views, [self._samples.ids[index] for index in read]

    def _mask(self, waves: Sequence[np.ndarray], generators: Sequence[np.random.Generator], width: int) -> Mask | None:
        """Spans of a view's clips, in a share of them, if data.mask_views asks for them."""
        data = self._data
        if not data.mask_views:
            return None
        tokens = [int(lengths(self._frontend, len(wave))) for wave in waves]
        hidden = [
            masking.sometimes(
                g, data.mask_chance, masking.span(g, t, data.mask_prob, data.mask_length, min_spans=data.min_masks)
            )
            for g, t in zip(generators, tokens, strict=True)
        ]
        return Mask(torch.from_numpy(masking.stacked(hidden, int(lengths(self._frontend, width)))))

    def _row(self, index: int, generator: np.random.Generator) -> tuple[list[np.ndarray], int]:
        """The views of a clip, of one and the same max_seconds of it, and its number."""
        size = int(self._sizes[index])
        wave, read = readable(self._samples, index, size, self._bad_log)
        return self._views(audio.anywhere(wave, size, generator), generator, self._any), read

    def _any(self, generator: np.random.Generator) -> np.ndarray:
        """Some clip of the data."""
        return readable(self._samples, int(generator.integers(len(self._samples))), 1, self._bad_log)[0]


def readable(samples: Samples, index: int, size: int, bad_log: Callable[[str, str], None]) -> tuple[np.ndarray, int]:
    """The clip, or the next that can be read, at least `size` samples long, and its number. ValueError: the next 100 cannot be read."""
    for candidate in (np.arange(index, index + 100) % len(samples)).tolist():
        try:
            wave = samples.wave(candidate)
        except (audio.UnreadableError, OSError) as error:
            bad_log(samples.ids[candidate], str(error))
            continue
        return (
            wave if len(wave) >= size else np.resize(wave, size)
        ), candidate  # a short stand-in is repeated: lengths are settled
    raise ValueError(
        f"100 clips in a row cannot be read, the first is {samples.ids[index]}: was data.path changed or unmounted?"
    )
