"""Training batches of speech, masked or of several views: pure functions of (seed, step, part, parts).

B samples of a batch, M masks of each, N = B * M, S audio samples, T tokens.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import masking, sampling
from d2v.modalities.speech import audio
from d2v.modalities.speech.config import DataConfig
from d2v.modalities.speech.frontend import MODALITY, FrontendConfig, lengths, receptive_field
from d2v.modalities.speech.samples import MIN_TOKENS, Samples, collate
from d2v.modalities.speech.views import Views
from d2v.reading import ignored
from d2v.types import Mask, View

ORDER = 0x57EA  # sets the shuffle of packed clips apart from the sampler's


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = ignored,
) -> "MaskedBatches | ViewBatches":
    """Training batches of `samples`; `bad_log(id, reason)` hears of clips that can no longer be read."""
    make = ViewBatches if data.views else MaskedBatches
    return make(samples, data, frontend, batch_size=batch_size, seed=seed, bad_log=bad_log)


class MaskedBatches:
    """Masked batches of clips, or of streams of equal length into which an epoch's clips are joined.

    The length of a row is known before its file is opened, so that every process can draw the masks of the whole batch
    and equalise them.
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
        self._samples, self._data, self._frontend = samples, data, frontend
        self._seed, self._bad_log = seed, bad_log
        self._stream = round(data.pack_seconds * frontend.sample_rate)  # samples; 0: no packing
        self._layout: tuple[int, np.ndarray, np.ndarray] | None = None  # the last epoch's; only saves time
        if self._stream:
            num_streams = int(samples.lengths.sum()) // self._stream
            if num_streams < batch_size:
                raise ValueError(
                    f"data has {num_streams} streams of data.pack_seconds={data.pack_seconds} "
                    f"({samples.report.amount}), fewer than one batch: train.batch_size is {batch_size}"
                    + (f", and may be {num_streams} or less" if num_streams else "")
                )
            self.sampler = sampling.Sampler(num_streams, batch_size, seed)
        else:
            longest = round(data.max_seconds * frontend.sample_rate)
            self._sizes = sampling.Cut(samples.lengths, longest)
            self.sampler = sampling.Sampler(len(samples), batch_size, seed, lengths=self._sizes)
        self.steps_per_epoch = len(self.sampler)

    def __getstate__(self) -> dict[str, Any]:
        """Other processes make the layout themselves."""
        return {**vars(self), "_layout": None}

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: one view, input_values (B, S) and M masks of each; the sample ids."""
        items = self.sampler(step)
        generators = sampling.generators(self._seed, step, range(len(items)))
        hidden, contexts = self._masks(step, items, generators)
        rows = range(len(items))[sampling.share(len(items), part, parts)]
        waves, ids = [], []
        for row in rows:
            wave, name = self._wave(step, int(items[row]), generators[row])
            waves.append(wave)
            ids.append(name)
        # as wide as the whole batch: positions depend on how many padded frames follow, and parts must not
        inputs, padding = collate(waves, self._frontend, int(self._sizes_of(items).max()))
        tokens = lengths(self._frontend, inputs["input_values"].shape[1])  # T
        mine = masking.stacked(list(chain.from_iterable(hidden[row] for row in rows)), tokens)  # (N, T)
        keep = None
        if contexts:
            unread = masking.stacked([~contexts[row] for row in rows], tokens)  # (B, T)
            most = max(int(context.sum()) for context in contexts)  # K
            keep = torch.from_numpy(masking.visible(unread, most))  # (B, K), padding behind the shorter ones
        elif self._data.mask_kind != "span":
            most = max(int((~mask).sum()) for mask in chain.from_iterable(hidden))  # K
            keep = torch.from_numpy(masking.visible(mine, most))  # (N, K)
        return [View(MODALITY, inputs, padding, Mask(torch.from_numpy(mine), keep))], ids

    def _masks(
        self, step: int, items: np.ndarray, generators: list[np.random.Generator]
    ) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        """Hidden tokens of every row of the global batch, M of (T_row,) bool each; of multi_block what is read, too."""
        sizes = lengths(self._frontend, self._sizes_of(items)).tolist()  # tokens of each row
        if self._data.mask_kind == "multi_block":
            return self._blocks(step, sizes, generators)
        hidden = []
        for generator, tokens in zip(generators, sizes, strict=True):
            hidden.append([self._mask(generator, tokens) for _ in range(self._data.masks)])
        if self._data.mask_kind == "span" and self._data.equalise:
            (common,) = sampling.generators(self._seed, step, [len(items)])  # that of no row
            equal = masking.equalise(common, list(chain.from_iterable(hidden)))
            hidden = [[mask] for mask in equal]
        return hidden, []

    def _blocks(
        self, step: int, sizes: list[int], generators: list[np.random.Generator]
    ) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        """I-JEPA's target spans of every row, and its context; shares are drawn once for the batch."""
        data = self._data
        (common,) = sampling.generators(self._seed, step, [len(sizes)])  # that of no row
        shares = common.uniform(*data.target_scale), common.uniform(*data.context_scale)
        hidden, contexts = [], []
        for generator, tokens in zip(generators, sizes, strict=True):
            sides = masking.Blocks(*(masking.block_sides(share, 1.0, (tokens,)) for share in shares))
            targets, context = masking.blocks(generator, (tokens,), sides, data.masks, data.min_context)
            hidden.append(targets)
            contexts.append(context)
        return hidden, masking.thinned(common, contexts)

    def _mask(self, generator: np.random.Generator, tokens: int) -> np.ndarray:
        """One mask of a row, (T_row,) bool."""
        data = self._data
        if data.mask_kind == "block":
            return masking.block_1d(generator, tokens, data.mask_prob, data.mask_length, data.mask_adjust)
        if data.mask_kind == "random":
            return masking.scattered(generator, tokens, data.mask_prob)
        return masking.span(generator, tokens, data.mask_prob, data.mask_length, min_spans=data.min_masks)

    def _sizes_of(self, items: np.ndarray) -> np.ndarray:
        """Samples that clips or streams have, of those that are asked for."""
        return np.full(len(items), self._stream) if self._stream else self._sizes[items]

    def _wave(self, step: int, item: int, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        """A row of the batch and its id."""
        return self._joined(step, item) if self._stream else self._clip(item, generator)

    def _clip(self, index: int, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        """A clip, cropped at random if it is too long, and its id."""
        size = int(self._sizes[index])
        number, wave = readable(
            self._samples, index, size, lambda wave: audio.anywhere(wave, size, generator), self._bad_log
        )
        return wave, self._samples.ids[number]

    def _joined(self, step: int, stream: int) -> tuple[np.ndarray, str]:
        """A cut of all clips in the order of the step's epoch, and the ids of its clips joined by +."""
        order, ends = self._order(step // self.steps_per_epoch)
        start = stream * self._stream
        stop = start + self._stream
        first = np.searchsorted(ends, start, side="right")
        last = np.searchsorted(ends, stop, side="left")
        waves, names = [], []
        for place in range(first, last + 1):
            size = int(self._samples.lengths[order[place]])
            begin = int(ends[place]) - size  # of the clip in the epoch
            part = slice(max(0, start - begin), min(size, stop - begin))
            number, wave = readable(self._samples, int(order[place]), size, itemgetter(part), self._bad_log)
            waves.append(wave)
            names.append(self._samples.ids[number])
        return np.concatenate(waves), "+".join(names)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of an epoch in their order, and the sample at which each ends."""
        if self._layout is None or self._layout[0] != epoch:
            order = np.random.default_rng((self._seed, ORDER, epoch)).permutation(len(self._samples))
            self._layout = (epoch, order, np.cumsum(self._samples.lengths[order]))
        return self._layout[1:]


class ViewBatches:
    """Clips of similar length, each decoded once and seen in one view for each name in data.views.

    Each view draws from a generator that no other has.
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
        """ValueError: fewer clips than one batch."""
        self._samples, self._data, self._frontend = samples, data, frontend
        self._seed, self._bad_log = seed, bad_log
        shortest = receptive_field(frontend, MIN_TOKENS)
        self._views = Views(data.views, data.augment, rate=frontend.sample_rate, shortest=shortest)
        self._longest = round(data.max_seconds * frontend.sample_rate)
        self._sizes = sampling.Cut(samples.lengths, self._longest)
        most = min(self._longest, round(data.augment.seconds * frontend.sample_rate))  # clips above it differ no more
        self.sampler = sampling.Sampler(len(samples), batch_size, seed, lengths=sampling.Cut(samples.lengths, most))
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch, and the sample ids.

        Each view has input_values (B, S), S as in the others, and the clips' numbers.
        """
        items = self.sampler(step)
        rows = range(len(items))[sampling.share(len(items), part, parts)]
        generators = sampling.generators(self._seed, step, rows)
        drawn, numbers = [], []  # the views of each clip, and its number
        for row, generator in zip(rows, generators, strict=True):
            waves, number = self._row(int(items[row]), generator)
            drawn.append(waves)
            numbers.append(number)
        width = self._views.width(self._sizes[items])  # of the whole batch: positions depend on it, and parts must not
        indices = torch.tensor(numbers)
        views = []
        for waves in zip(*drawn, strict=True):  # those of one view
            inputs, padding = collate(waves, self._frontend, width)
            mask = self._mask(waves, generators, width)
            views.append(View(MODALITY, inputs, padding, mask, indices=indices))
        return views, [self._samples.ids[number] for number in numbers]

    def _mask(self, waves: Sequence[np.ndarray], generators: Sequence[np.random.Generator], width: int) -> Mask | None:
        """Spans of a view's clips, in a share of them, if data.mask_views asks for them."""
        data = self._data
        if not data.mask_views:
            return None
        hidden = []
        for wave, generator in zip(waves, generators, strict=True):
            tokens = int(lengths(self._frontend, len(wave)))
            spans = masking.span(generator, tokens, data.mask_prob, data.mask_length, min_spans=data.min_masks)
            hidden.append(masking.sometimes(generator, data.mask_chance, spans))
        return Mask(torch.from_numpy(masking.stacked(hidden, int(lengths(self._frontend, width)))))

    def _row(self, index: int, generator: np.random.Generator) -> tuple[list[np.ndarray], int]:
        """The views of a clip, of one and the same max_seconds of it, and its number."""
        size = int(self._sizes[index])
        number, wave = readable(
            self._samples, index, size, lambda wave: audio.anywhere(wave, size, generator), self._bad_log
        )
        return self._views(wave, generator, self._any), number

    def _any(self, generator: np.random.Generator) -> np.ndarray:
        """Some clip of the data; of a long one max_seconds."""

        def take(wave: np.ndarray | audio.Long) -> np.ndarray:
            return audio.anywhere(wave, self._longest, generator) if isinstance(wave, audio.Long) else wave

        return readable(self._samples, int(generator.integers(len(self._samples))), 1, take, self._bad_log)[1]


def readable(
    samples: Samples,
    index: int,
    size: int,
    take: Callable[[np.ndarray | audio.Long], np.ndarray],
    bad_log: Callable[[str, str], None],
) -> tuple[int, np.ndarray]:
    """The number of the clip, or of the next that can be decoded, and what `take` has of it.

    It is at least `size` samples long. ValueError: it and the 99 after it cannot be decoded.
    """

    def read(candidate: int) -> np.ndarray:
        wave = samples.clip(candidate)
        # a short stand-in is repeated: lengths are settled
        return take(wave if len(wave) >= size else np.resize(wave[:], size))

    candidates = sampling.following(index, len(samples))
    return sampling.readable(samples.ids, candidates, read, bad_log, "100 clips in a row cannot be read")
