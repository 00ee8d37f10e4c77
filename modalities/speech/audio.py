"""One audio file or its bytes, or a part of it -> mono float32 at the wanted rate.

Whatever libsndfile reads: wav, flac, ogg, opus, mp3, aiff, ... No header is believed: files are decoded to their end.

S audio samples, C channels.
"""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from d2v.modalities.common import shards
from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.speech.resampling import Resampler

EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor, which an export is read with; it has no setting for it
BLOCK = 2**20  # samples that are decoded at once
COUNTED = 2**62  # libsndfile says more than this where a stream does not say how long it is
CANCELLED = 1e-3  # share of its channels' energy below which their mean is what opposite phases leave
OVERHANG = 0.1  # seconds by which a part may end after its recording, as rounded times do
ALIGNED = 8  # bytes that may be missing at the end: padding
# What libsndfile's log says of a chunk of sound that is shorter than it says itself, or longer than the file.
SHORTER = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.M)
DS64 = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
# In place of a length that was not known when the header was written; programs take off a few bytes of headers.
UNKNOWN = (range(0, 1), range(0x7FFFF000, 0x80000001), range(0xFFFFF000, 0x100000000))


class Part(NamedTuple):
    """What of a recording a clip is, in seconds."""

    start: float = 0.0
    stop: float = math.nan  # NaN: to its end


WHOLE = Part()


class Found(NamedTuple):
    """What a whole pass over a clip finds; `read` needs it for pieces."""

    first: int  # sample of the file at which the clip begins, at its own rate as the next
    frames: int
    channel: int | None  # which is the clip; None: their mean
    length: int  # samples at the wanted rate, as what follows
    mean: float
    variance: float


class _Bytes(io.BytesIO):
    """Stays where it is rather than go before its beginning: errors inside of libsndfile's reading are printed."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class _Sound(soundfile.SoundFile):
    """Read from first to last: soundfile's own seek after each read fails at the end of a stream of unknown length."""

    def seekable(self) -> bool:
        return False


def encoded(cell: Any) -> bytes | Path:
    """What a media cell holds: the file's bytes, or where it lies. ValueError: the cell is empty.

    A decoded one, {"array": (S,) or (C, S), "sampling_rate": ...}, gives bytes of a file of the same samples.
    """
    if isinstance(cell, dict) and cell.get("offset") is not None:
        return shards.read(cell)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or (_as_file(cell) if cell.get("array") else cell.get("path"))
    if not cell:
        raise ValueError("empty cell")
    return cell if isinstance(cell, bytes) else Path(cell)


def _as_file(cell: dict[str, Any]) -> bytes:
    """A decoded cell as a wav file. ValueError: its rate is missing, or it is of another shape."""
    rate, wave = cell.get("sampling_rate"), np.array(cell["array"])
    if not rate or wave.ndim > 2 or wave.dtype.kind not in "if":
        raise ValueError("an array of sound needs numbers of shape (samples,) or (channels, samples) and sampling_rate")
    whole = wave.dtype.kind == "i"  # 16-bit samples, as the format has them
    file = io.BytesIO()
    wave = wave.astype(np.int16 if whole else np.float32)
    soundfile.write(file, wave.T, int(rate), format="WAV", subtype="PCM_16" if whole else "FLOAT")
    return file.getvalue()


def decode(media: bytes | Path, rate: int, part: Part = WHOLE) -> np.ndarray:
    """(S,) float32 at `rate`; channels are averaged, or one is taken where their mean cancels.

    UnreadableError: not audio, cut off, not finite, no sound, or no such part.
    """
    wave, given, _ = as_recorded(media, part)
    mono = mix(wave)
    if len(mono) and mono.min() == mono.max():
        raise UnreadableError("no sound: all samples are equal")
    return mono if given == rate else _resampler(given, rate)(mono)


def as_recorded(media: bytes | Path, part: Part = WHOLE) -> tuple[np.ndarray, int, str]:
    """(S, C) float32 at the file's own rate, that rate, and what samples are written as. UnreadableError: as decode."""
    with _opened(media) as sound:
        first, last = _span(sound, part)
        blocks = list(_blocks(sound, first, last))
        wave = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)  # (S, C)
        _check_end(sound, media, part, last, first + len(wave))
        return wave, sound.samplerate, sound.subtype


def length(media: bytes | Path, rate: int, part: Part = WHOLE) -> int:
    """Samples at `rate`, by the header if that can be. UnreadableError: not audio, or no such part."""
    return outline(media, rate, part)[0]


def outline(media: bytes | Path, rate: int, part: Part = WHOLE) -> tuple[int, int]:
    """The same, and the rate that the file has."""
    with _opened(media) as sound:
        first, last = _span(sound, part)
        if last is None:
            last = first + sum(len(block) for block in _blocks(sound, first, None))
        _check_end(sound, media, part, last, last)
        return _resampler(sound.samplerate, rate).length(last - first), sound.samplerate


def survey(media: bytes | Path, rate: int, part: Part = WHOLE) -> Found:
    """A pass over all of a clip, a block in memory at a time. UnreadableError: as `decode`."""
    with _opened(media) as sound:
        first, last = _span(sound, part)
        end, energy, of_mean = first, np.zeros(sound.channels), 0.0
        low, high = np.full(sound.channels, np.inf), np.full(sound.channels, -np.inf)
        for block in _blocks(sound, first, last):
            end += len(block)
            energy += np.square(block, dtype=np.float64).sum(axis=0)
            of_mean += float(np.square(block.mean(axis=1), dtype=np.float64).sum())
            low = np.minimum(low, block.min(axis=0, initial=np.inf))
            high = np.maximum(high, block.max(axis=0, initial=-np.inf))
        _check_end(sound, media, part, last, end)
        resampler = _resampler(sound.samplerate, rate)
    if end == first:
        raise UnreadableError("no samples")
    if (low == high).all():
        raise UnreadableError("no sound: all samples are equal")
    channel = int(energy.argmax()) if of_mean < CANCELLED * energy.mean() else None
    found = Found(first, end - first, channel, resampler.length(end - first), 0.0, 1.0)
    total, squares = 0.0, 0.0
    for start in range(0, found.length, BLOCK):
        piece = read(media, rate, found, start, min(start + BLOCK, found.length)).astype(np.float64)
        total += piece.sum()
        squares += np.square(piece).sum()
    mean = total / found.length
    return found._replace(mean=mean, variance=max(0.0, squares / found.length - mean**2))


def read(media: bytes | Path, rate: int, found: Found, start: int, stop: int) -> np.ndarray:
    """Samples `start` to `stop` at `rate` of a clip that was surveyed, as `decode` gives them in the whole, (S,)."""
    with _opened(media) as sound:

        def mono(first: int, last: int) -> np.ndarray:
            wave = np.concatenate(list(_blocks(sound, found.first + first, found.first + last)))  # (S, C)
            if len(wave) < last - first:
                raise UnreadableError(f"cut off: {len(wave)} of {last - first} samples can be decoded")
            return _averaged(wave) if found.channel is None else np.ascontiguousarray(wave[:, found.channel])

        return _resampler(sound.samplerate, rate).piece(mono, start, stop, found.frames)


class Long:
    """A clip of which only the pieces that are asked for are decoded: a slice of it is an array, (S,) float32."""

    def __init__(self, media: bytes | Path, rate: int, found: Found, *, normalised: bool):
        self._media, self._rate, self._found, self._normalised = media, rate, found, normalised

    def __len__(self) -> int:
        return self._found.length

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        piece = read(self._media, self._rate, self._found, start, stop)
        return scaled(piece, self._found.mean, self._found.variance) if self._normalised else piece


def normalise(wave: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole clip, as an export's feature extractor does it."""
    mean = wave.mean(dtype=np.float64)
    variance = np.square(wave - mean).mean(dtype=np.float64)
    return scaled(wave, mean, variance)


def scaled(wave: np.ndarray, mean: float, variance: float) -> np.ndarray:
    """A wave, or a piece of it, by the mean and variance of the whole."""
    return ((wave - mean) / math.sqrt(variance + EPS)).astype(np.float32)


def mix(wave: np.ndarray) -> np.ndarray:
    """(S, C) -> (S,): the mean of the channels, or the loudest where they cancel, as opposite phases do."""
    mean = _averaged(wave)
    if wave.shape[1] == 1 or not len(wave):
        return mean
    energy = wave.var(axis=0, dtype=np.float64)  # (C,) without what does not swing, which no phase cancels
    if mean.var(dtype=np.float64) < CANCELLED * energy.mean():
        return np.ascontiguousarray(wave[:, energy.argmax()])
    return mean


def _averaged(wave: np.ndarray) -> np.ndarray:
    return wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)


def crop(wave: np.ndarray | Long, size: int, start: int) -> np.ndarray:
    """`size` samples from `start` of a longer wave; a shorter one as it is."""
    if len(wave) > size:
        return wave[start : start + size]
    return wave[:] if isinstance(wave, Long) else wave


def anywhere(wave: np.ndarray | Long, size: int, generator: np.random.Generator) -> np.ndarray:
    """`size` samples from a random place of a longer wave; a shorter one as it is."""
    return crop(wave, size, int(generator.integers(max(0, len(wave) - size) + 1)))


def _resampler(given: int, rate: int) -> Resampler:
    try:
        return Resampler(given, rate)
    except ValueError as error:
        raise UnreadableError(str(error)) from None


@contextmanager
def _opened(media: bytes | Path) -> Iterator[_Sound]:
    """Inside, what goes wrong with a file is an UnreadableError."""
    try:
        sound = _Sound(_file(media))
        if not sound.frames:
            sound.close()
            sound = _Sound(_with_length(media))
        with sound:
            yield sound
    except (soundfile.SoundFileError, OSError, EOFError, TypeError, MemoryError) as error:
        raise UnreadableError(_reason(error)) from error


def _file(media: bytes | Path) -> io.BytesIO | str:
    if isinstance(media, bytes):
        return _Bytes(media)
    if not media.is_file():  # libsndfile says "System error", and waits for a pipe
        raise UnreadableError("no ordinary file" if media.exists() else f"no such file: {media}")
    return str(media)


def _with_length(media: bytes | Path) -> io.BytesIO:
    """A file whose header says that it has no sound, as one does that was written before its length was known.

    With the unknown length that libsndfile takes for all that follows.
    """
    data = bytearray(media if isinstance(media, bytes) else media.read_bytes())
    if data[:4] == b".snd" and len(data) > 12:
        data[8:12] = b"\xff" * 4
    if data[:4] == b"RIFF":
        place = _empty_chunk(data)
        if place is not None:
            data[4:8] = data[place + 4 : place + 8] = b"\xff" * 4
    return _Bytes(bytes(data))


def _empty_chunk(data: bytearray) -> int | None:
    """Where the chunk of sound of a WAV begins, if it says 0 bytes and no chunks but bytes follow it."""
    place, found = 12, None
    while place + 8 <= len(data):
        name, size = bytes(data[place : place + 4]), int.from_bytes(data[place + 4 : place + 8], "little")
        if found is None and name == b"data":
            if size:
                return None
            found = place
        place += 8 + size + size % 2
    whole = place == len(data)  # what follows are chunks of other things, to the last byte
    return None if whole else found


def _span(sound: _Sound, part: Part) -> tuple[int, int | None]:
    """First and last sample of a part of a file, at its own rate; None: to an end that no header tells."""
    rate = sound.samplerate
    if part.stop < part.start:
        raise UnreadableError(f"begins at {part.start:g} s and ends before, at {part.stop:g} s")
    total = sound.frames if sound.frames < COUNTED else None
    first = round(part.start * rate)
    last = total if math.isnan(part.stop) else round(part.stop * rate)
    if total is None:
        return first, last
    if first and first >= total:
        raise UnreadableError(f"begins at {part.start:g} s, and the recording has {total / rate:g} s")
    if last > total + OVERHANG * rate:
        raise UnreadableError(f"ends at {part.stop:g} s, and the recording has {total / rate:g} s")
    return first, min(last, total)


def _blocks(sound: _Sound, first: int, last: int | None) -> Iterator[np.ndarray]:
    """Samples of a file that was just opened, (S, C), one block or more; None: to its end."""
    if first:
        try:
            sound.seek(first)
        except soundfile.LibsndfileError:  # of a kind that is read from its beginning only
            for _ in _blocks(sound, 0, first):
                pass
    place = first
    while True:
        asked = BLOCK if last is None else min(BLOCK, last - place)
        block = sound.read(asked, dtype="float32", always_2d=True)
        if not np.isfinite(block).all():
            raise UnreadableError("holds NaN or infinite samples")
        yield block
        place += len(block)
        if len(block) < asked or place == last:
            return


def _check_end(sound: _Sound, media: bytes | Path, part: Part, last: int | None, end: int) -> None:
    """UnreadableError: decoding ended at sample `end`, before `last`, or bytes are missing that were promised."""
    rate = sound.samplerate
    if part != WHOLE:
        if last is not None and end < last - OVERHANG * rate:
            raise UnreadableError(f"ends at {part.stop:g} s, and the recording has {end / rate:g} s")
        return
    promised = _promised(sound, media, last)
    if end < promised:
        raise UnreadableError(f"cut off: {end} of {promised} samples can be decoded")
    missing = _missing(sound.extra_info)
    if missing:
        raise UnreadableError(f"cut off: {missing}")
    if sound.format == "OGG" and not _has_last_page(media):
        raise UnreadableError("cut off: its last page does not end the stream")


def _promised(sound: _Sound, media: bytes | Path, last: int | None) -> int:
    """Samples that a whole file must have, where libsndfile says `last`."""
    if last is None:
        return 0
    if sound.format not in ("MP3", "MPEG", "OGG", "NIST"):
        return last
    with _bytes(media) as file:
        head = file.read(4096)
    if sound.format == "NIST":
        said = re.search(rb"sample_count +-i +(\d+)", head)
        return int(said[1]) if said else last
    if b"Xing" in head or b"Info" in head:  # how many frames of MP3 there are
        return last - 4 * 1152
    return int(0.9 * last)  # an estimate


def _bytes(media: bytes | Path) -> BinaryIO:
    return io.BytesIO(media) if isinstance(media, bytes) else media.open("rb")


def _missing(log: str) -> str:
    """What is missing of the sound that a header promises, by libsndfile's log; "": nothing."""
    chunk, frames = SHORTER.search(log), DS64.search(log)
    if chunk:
        promised, there = int(chunk[1]), int(chunk[2])
        if promised > there + ALIGNED and not any(promised in unknown for unknown in UNKNOWN):
            return f"{there} of {promised} bytes are there"
    if frames and int(frames[1]) < int(frames[2]):
        return f"{frames[1]} of {frames[2]} samples are there"
    return "fewer samples are there than its header says" if "Seems to be a truncated file" in log else ""


def _has_last_page(media: bytes | Path) -> bool:
    """Whether the last page of an Ogg file is whole and says that it is the last."""
    with _bytes(media) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2**17))  # two of the largest pages
        tail = file.read()
    place = tail.rfind(b"OggS")
    header = tail[place : place + 27]
    if place < 0 or len(header) < 27 or not header[5] & 4:
        return False
    lengths = tail[place + 27 : place + 27 + header[26]]
    return len(tail) >= place + 27 + header[26] + sum(lengths)


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.strip().rstrip(".") or type(error).__name__
