"""Speech files -> checked samples -> evaluation views.

B samples of a batch, S audio samples, T tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

from d2v import cache
from d2v.modalities.common import feeding, sources, tables
from d2v.modalities.common.data_report import Report
from d2v.modalities.common.mapped import kept
from d2v.modalities.common.sampling import Chosen, Usable
from d2v.modalities.common.scans import NONE, scan
from d2v.modalities.common.windows import Window, counted, cut
from d2v.modalities.speech import anagrams, audio, synth
from d2v.modalities.speech.choice import open_labelled
from d2v.modalities.speech.config import DataConfig, ReadConfig, TuningConfig
from d2v.modalities.speech.frontend import MODALITY, FrontendConfig, lengths, receptive_field, stride
from d2v.modalities.speech.mel import LogMel
from d2v.protocols import Rows
from d2v.types import View

MIN_TOKENS = 2  # one to hide, one to see
MINUTE = 6000  # frames of a spectrum
LONG = 4  # times data.max_seconds: of longer clips only the pieces that are asked for are decoded


def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int) -> None:
    """ValueError: rows of training would be too short."""
    needed = receptive_field(frontend, MIN_TOKENS)
    sizes = {
        "max_seconds": data.max_seconds,
        "pack_seconds": data.pack_seconds,
        "augment.seconds": data.augment.seconds,
    }
    for name, seconds in sizes.items():
        if seconds and round(seconds * frontend.sample_rate) < needed:
            raise ValueError(
                f"data.{name} is {seconds}; {MIN_TOKENS} tokens need {needed / frontend.sample_rate:.3f} seconds"
            )


class Samples:
    """The usable clips of one split, checked once."""

    raw_name = "mean log-mel 40"

    @staticmethod
    def open(config: ReadConfig, split: str) -> datasets.Dataset:
        """The rows of a split, not read yet. ValueError: there are none."""
        if isinstance(config, TuningConfig):
            return open_labelled(config.path, split)
        if config.path == "demo":
            return sources.with_splits(synth.dataset(split), ["train", "test"])
        if config.path == anagrams.DEMO:
            return sources.with_splits(anagrams.dataset(split), anagrams.CLIPS)
        return sources.open_source(config.path, split, sources.AUDIO, "audio")

    def __init__(
        self,
        config: ReadConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """ValueError: the source cannot be opened, or too many of its clips are bad.

        `rows`: these only, of which the headers are checked.
        """
        self.config, self.frontend = config, frontend
        self.rate = frontend.sample_rate
        dataset, first = (self.open(config, split), 0) if rows is None else rows[:2]
        in_passing = rows is not None and not rows.whole
        self._decodes = config.check_files and not in_passing
        self._dataset = dataset
        self._media = dataset.select_columns([tables.media_column(dataset, "audio")])
        self._segments = tables.segments(dataset)  # (rows, 2) seconds; None: every row is a whole recording
        # Both only save time: short clips, decoded, and what a pass over a long clip found, by row.
        self._cache: dict[int, np.ndarray] | None = None if in_passing else {}
        self._found: dict[int, audio.Found] = {}
        self._budget, self._kept = config.cache_hours * 3600 * frontend.sample_rate, 0  # samples that the cache holds
        self._longest = round(config.max_seconds * self.rate)
        self.classes = tables.classes(dataset, config.label) if config.label in dataset.column_names else None
        ids = tables.identifiers(dataset, config.path, split, first)
        self.report = Report(
            "audio", found=len(dataset), usable=0, notes=sources.notes(dataset), splits=sources.splits(dataset)
        )
        self._rows, self.lengths, self.origin = self._scan(ids, None if in_passing else [config.path, split])
        self.ids = Chosen(ids, self._rows)
        self.report.usable = len(self._rows)
        self.report.amount = f"{self.lengths.sum() / self.rate / 3600:.2f} hours"
        if config.label in dataset.column_names and not getattr(config, "regression", False):
            self.report.count_classes(self.column(config.label), self.classes, config.label)
        if not in_passing:
            self.report.check(config.max_bad_share, config.path)
            self.report.notes += [] if self._segments is not None else tables.repeated(dataset)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def cut(self) -> np.ndarray:
        """Which are longer than what is read at once, (n,) bool."""
        return self.lengths > self._longest

    @property
    def rows(self) -> np.ndarray:
        """(n,) which rows of the source they are."""
        return np.asarray(self._rows)

    def files(self) -> np.ndarray | None:
        """(n,) numbers that are equal where clips are the same part of the same file; None: they are of none."""
        return tables.same_files(self._media, self.rows, self._segments)

    def clip(self, index: int) -> np.ndarray | audio.Long:
        """A usable clip as `wave` gives it; one that is long by slices, which alone are decoded.

        UnreadableError: it, or later a slice, can no longer be read.
        """
        if self.lengths[index] <= LONG * self._longest:
            return self.wave(index)
        row = int(self._rows[index])
        if row not in self._found:
            self._found[row] = audio.survey(self._source(row), self.rate, self._part(row))
        return audio.Long(self._source(row), self.rate, self._found[row], normalised=self.config.normalize)

    def wave(self, index: int) -> np.ndarray:
        """A usable clip, whole, normalised if asked for, (S,) float32. UnreadableError: it can no longer be read."""
        if self.lengths[index] > LONG * self._longest:
            return self.clip(index)[:]
        row = int(self._rows[index])
        wave = None if self._cache is None else self._cache.get(row)
        if wave is None:
            wave = audio.decode(self._source(row), self.rate, self._part(row))
            if lengths(self.frontend, len(wave)) < MIN_TOKENS:  # the header promised more
                raise audio.UnreadableError(f"only {len(wave)} samples can be decoded")
            if self._cache is not None:
                self._cache[row] = wave
        return audio.normalise(wave) if self.config.normalize else wave

    def column(self, name: str, *, empty: Any = None) -> np.ndarray:
        """Values of a data column per usable sample; `empty`: what stands for a missing one in place of None.

        ValueError: no such column.
        """
        if empty is None:
            return tables.cells(self._dataset, name, self.rows)
        return tables.values(self._dataset, name, self.rows, self.ids, empty=empty)

    def view(self, indices: Iterable[int]) -> View:
        """Whole clips, unmasked; those above max_seconds keep their middle; input_values (B, S)."""
        longest = self._longest
        waves = []
        for index in indices:
            wave = self.clip(index)
            waves.append(audio.crop(wave, longest, (len(wave) - longest) // 2))
        inputs, padding = collate(waves, self.frontend)
        return View(MODALITY, inputs, padding)

    def windows(self, index: int, overlap: float, batch_size: int) -> Iterator[tuple[View, Tensor]]:
        """A clip in windows of max_seconds, `batch_size` at a time, and their tokens that count, (B, T).

        Neighbours share `overlap` of a window. Each token of the whole clip counts once: in the window where it is
        farther from the border.
        """
        wave = self.clip(index)
        windows = cut(lengths(self.frontend, len(wave)), lengths(self.frontend, self._longest), overlap)
        for start in range(0, len(windows), batch_size):
            some = windows[start : start + batch_size]
            inputs, padding = collate([self._of_window(wave, window) for window in some], self.frontend)
            yield View(MODALITY, inputs, padding), counted(some)

    def raw(self, indices: Iterable[int]) -> np.ndarray:
        """Log-mel spectrum of 40 bins averaged over the whole clip, (B, 40)."""
        mel = LogMel(self.rate, 40, 25.0, 10.0, low=60.0)
        return np.stack([_mean_spectrum(self.clip(index), mel) for index in indices])

    def _of_window(self, wave: np.ndarray | audio.Long, window: Window) -> np.ndarray:
        """The part of a clip that a window's tokens see."""
        start = window.start * stride(self.frontend)
        return wave[start : start + receptive_field(self.frontend, window.stop - window.start)]

    def _source(self, row: int) -> bytes | Path:
        (cell,) = self._media[row].values()
        return audio.encoded(cell)

    def picture(self, index: int) -> Image.Image:
        """The log-mel spectrogram, low tones below. ValueError: the clip can no longer be read."""
        wave = torch.from_numpy(self.wave(index)[: self._longest])[None]
        mel = LogMel(self.rate, 40, 25.0, 10.0, low=60.0)(wave / wave.std().clamp(min=1e-6))[0].T.flip(0)  # (40, F)
        grey = ((mel - mel.amin()) / (mel.amax() - mel.amin()).clamp(min=1e-6) * 255).to(torch.uint8)
        return Image.fromarray(grey.numpy()).resize((192, 80))

    def _part(self, row: int) -> audio.Part:
        """Which part of its recording a row is."""
        return audio.WHOLE if self._segments is None else audio.Part(*self._segments[row].tolist())

    def _measure(self, row: int) -> tuple[int, int] | str:
        """Length of a clip at the wanted rate, and the rate of its file, or why it is unreadable.

        Decoded clips are kept while they are few.
        """
        try:
            source, part = self._source(row), self._part(row)
            samples, rate = audio.outline(source, self.rate, part)
            if not self._decodes:
                return samples, rate
            if samples > LONG * self._longest:
                self._found[row] = audio.survey(source, self.rate, part)
                return self._found[row].length, rate
            wave = audio.decode(source, self.rate, part)
        except ValueError as error:
            return str(error)
        kept = self._cache
        if kept is not None and self._kept < self._budget:  # threads decode ahead of what _scan has counted
            kept[row] = wave
            self._kept += len(wave)
        return len(wave), rate

    def _scan(self, ids: Sequence[str], data: list[Any] | None) -> tuple[Usable, np.ndarray, str | None]:
        """Usable rows, their lengths, and what changes if their files do; fills the report."""
        shortest = max(round(self.config.min_seconds * self.rate), receptive_field(self.frontend, MIN_TOKENS))
        longest = LONG * self._longest if self._decodes else 0
        settings = data and ["audio", *data, self._decodes, self.rate, longest]
        found = scan(self._media, settings, 2, self._measure, self._segments, decodes=self._decodes)
        self.report.unreadable += [(ids[row], why) for row, why in found.faults.items()]
        sizes, rates = found.numbers.T
        short = np.flatnonzero((sizes < shortest) & (sizes != NONE))
        for row in short.tolist():
            size = int(sizes[row])
            setting = " (data.min_seconds)" if self.config.min_seconds * self.rate >= shortest - 0.5 else ""
            why = f"{size / self.rate:.3f} s, at least {shortest / self.rate:.3f} s are needed{setting}"
            self.report.too_short.append((ids[row], why if size else "no samples"))
        rows = Usable(len(ids), np.union1d(short, np.flatnonzero(sizes == NONE)))
        lengths = np.delete(sizes, rows.others)
        if lengths.sum() > self._budget:
            self._cache = None
        if len(rows):
            self.report.sizes, self.report.advice = self._sizes(lengths, rates[rates != NONE])
        parts = [] if self._segments is None else [self._segments]  # other ones are other lengths of the same files
        digest = found.digest and cache.digest_of(found.digest, data, rows.others, *parts)
        held = kept("lengths", cache.digest_of(settings), digest, lambda: {"lengths": np.asarray(lengths)})
        return rows, held["lengths"], digest

    def _sizes(self, lengths: np.ndarray, rates_of_files: np.ndarray) -> tuple[str, str]:
        """What is said of lengths and rates beside what the model reads, and which settings would help."""
        typical, most = np.median(lengths) / self.rate, self.config.max_seconds
        said = f"typical length: {typical:.1f} s, up to {most:g} s are read at once"
        if longer := int((lengths > self._longest).sum()):
            said += f", {longer} are longer"
        found, counts = np.unique(rates_of_files, return_counts=True)
        rates = found.tolist()
        if rates == [self.rate]:
            return f"{said}; at {self.rate} Hz", ""
        said += f"; at {', '.join(map(str, rates))} Hz, read at {self.rate} Hz"
        common = rates[int(counts.argmax())]
        if common < 2 * self.rate:
            return said, ""
        where = f"model.frontends.{MODALITY}"
        higher = f" {where}.mel_high={common // 2 - 100}" if self.frontend.mel_high else ""
        return said, f"tones above {self.rate // 2} Hz are not heard; {where}.sample_rate={common}{higher} hears them"


def queries(given: Sequence[str], data: ReadConfig, frontend: FrontendConfig, folder: Path) -> Samples:
    """Sound files that are no data, as samples in their order; what cannot be read is in the report."""
    rows = datasets.Dataset.from_dict({"file": list(given)})
    return Samples(replace(data, min_seconds=0.0), frontend, split=data.split, folder=folder, rows=Rows(rows, 0))


def _mean_spectrum(wave: np.ndarray | audio.Long, mel: LogMel) -> np.ndarray:
    """Of a clip, (M,), a minute of a long one in memory at a time."""
    frames = 1 + max(0, len(wave) - mel.size) // mel.hop
    total = torch.zeros(mel.filters.shape[1])
    for first in range(0, frames, MINUTE):
        stop = min(first + MINUTE, frames)
        piece = torch.from_numpy(wave[first * mel.hop : (stop - 1) * mel.hop + mel.size])
        piece = torch.nn.functional.pad(piece, (0, max(0, mel.size - len(piece))))
        total += mel(piece[None])[0].sum(0)
    return (total / frames).numpy()


def collate(
    waves: Sequence[np.ndarray], frontend: FrontendConfig, size: int = 0
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Clips padded at the right to the longest or to `size`: inputs (B, S), and padding (B, T) if there is any."""
    sizes = torch.tensor([len(wave) for wave in waves])
    longest = max(size, int(sizes.max()))
    padded = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])  # (B, S)
    inputs = {"input_values": torch.from_numpy(padded)}
    if int(sizes.min()) == longest:
        return inputs, None
    inputs["attention_mask"] = (torch.arange(longest) < sizes[:, None]).int()
    padding = torch.arange(lengths(frontend, longest)) >= lengths(frontend, sizes)[:, None]  # (B, T)
    return inputs, padding if padding.any() else None


def save_preprocessor(folder: Path, samples_folder: Path, data: ReadConfig, frontend: FrontendConfig) -> None:
    """Writes preprocessor_config.json, for `AutoFeatureExtractor.from_pretrained(folder)`."""
    feature_extractor(data, frontend).save_pretrained(folder)


def feature_extractor(data: ReadConfig, frontend: FrontendConfig) -> Wav2Vec2FeatureExtractor:
    """What pads and normalises waveforms as `Samples.view` does."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=frontend.sample_rate,
        padding_value=0.0,
        do_normalize=data.normalize,
        return_attention_mask=True,
    )


def inherit(data: ReadConfig, source: Path, former: dict | None) -> None:
    """Weights are of waves as they were scaled: fills normalize, where `source` says it.

    ValueError: its preprocessor cannot be read.
    """
    trained = former or feeding.of_run(source, MODALITY) or feeding.of_fairseq(source)
    if "normalize" not in trained:
        found = feeding.preprocessor(AutoFeatureExtractor, source)
        trained = {} if found is None else {"normalize": found.do_normalize}
    data.normalize = bool(trained.get("normalize", data.normalize))
