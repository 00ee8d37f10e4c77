"""One audio file or its bytes -> mono float32 at the wanted rate.

Whatever libsndfile reads: wav, flac, ogg, opus, mp3, aiff, ...
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample


class UnreadableError(ValueError):
    """The file cannot be used; the message says why."""


def encoded(cell: Any) -> bytes | Path:
    """What a media cell holds: the file's bytes, or where it lies. ValueError: the cell is empty."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError("empty cell")
    return cell if isinstance(cell, bytes) else Path(cell)


def decode(media: bytes | Path, rate: int) -> np.ndarray:
    """(S,) float32 at `rate`, channels averaged. UnreadableError: not audio, cut off, or not finite."""
    try:
        with soundfile.SoundFile(_file(media)) as sound:
            wave = sound.read(dtype="float32", always_2d=True)  # (S, channels)
            given, promised = sound.samplerate, sound.frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnreadableError(_reason(error)) from error
    if len(wave) < 0.9 * promised:  # lossy formats promise a little more or less than they hold
        raise UnreadableError(f"cut off: {len(wave)} of {promised} samples can be decoded")
    if not np.isfinite(wave).all():
        raise UnreadableError("holds NaN or infinite samples")
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if given == rate or not len(mono):
        return mono
    return resample(torch.from_numpy(mono), given, rate).numpy()


def length(media: bytes | Path, rate: int) -> int:
    """Samples at `rate` that the header promises. UnreadableError: not audio."""
    try:
        header = soundfile.info(_file(media))
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnreadableError(_reason(error)) from error
    return resampled_length(header.frames, header.samplerate, rate)


def resampled_length(samples: int, rate: int, wanted: int) -> int:
    """What `resample` returns for `samples`."""
    common = math.gcd(rate, wanted)
    return -(-samples * (wanted // common) // (rate // common))


def normalise(wave: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole clip, as layer norm does it."""
    mean = wave.mean(dtype=np.float64)
    variance = np.square(wave - mean).mean(dtype=np.float64)
    return ((wave - mean) / math.sqrt(variance + 1e-5)).astype(np.float32)


def crop(wave: np.ndarray, size: int, start: int) -> np.ndarray:
    """`size` samples from `start` of a longer wave; a shorter one as it is."""
    return wave if len(wave) <= size else wave[start : start + size]


def anywhere(wave: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """`size` samples from a random place of a longer wave; a shorter one as it is."""
    return crop(wave, size, int(generator.integers(max(0, len(wave) - size) + 1)))


def _file(media: bytes | Path) -> io.BytesIO | str:
    if isinstance(media, bytes):
        return io.BytesIO(media)
    if not media.is_file():  # libsndfile says "System error"
        raise UnreadableError("no such file")
    return str(media)


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.strip().rstrip(".")
