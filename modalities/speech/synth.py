"""Demo data: a formant synthesiser says ten words of two vowels, so that everything can be tried without any file.

Each word has a twin of the same vowels in the other order ("ia", "ai"): the mean spectrum cannot tell twins apart, a
model of the sequence can. There are several voices; those of split "test" are not in "train".
"""

import functools
import io
from collections.abc import Sequence

import datasets
import numpy as np
import soundfile
from scipy.signal import lfilter

from d2v.protocols import NoSplitError

RATE = 8000
FRAME = 160  # samples for which the formants stand still
SIZE = 512  # of a piece that is filtered: long enough for a resonator to ring out
DELAY = np.exp(-2j * np.pi * np.arange(SIZE // 2 + 1) / SIZE)  # by one sample, (frequencies,)
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}  # Hz
BANDWIDTHS = np.array([80.0, 110.0, 170.0])  # Hz
WORDS = ("ia", "ai", "eo", "oe", "ua", "au", "iu", "ui", "ea", "ae")
VOICES: dict[str, dict[str, tuple[float, float]]] = {  # pitch in Hz, formants relative to VOWELS
    "train": {
        "v1": (95, 0.92),
        "v2": (120, 0.98),
        "v3": (150, 1.03),
        "v4": (185, 1.09),
        "v5": (215, 1.15),
        "v6": (250, 1.20),
    },
    "test": {"v7": (110, 0.95), "v8": (230, 1.12)},
}
CLIPS = {"train": 420, "test": 120}


@functools.cache  # a run, its health checks and what scores it open it each
def dataset(split: str) -> datasets.Dataset:
    """Columns audio (WAV bytes), label and text (the word), speaker. ValueError: another split than train, test."""
    if split not in CLIPS:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(CLIPS)}")
    voices = list(VOICES[split])
    waves, labels, speakers = [], [], []
    for number in range(CLIPS[split]):
        label = number % len(WORDS)
        speaker = voices[number // len(WORDS) % len(voices)]
        generator = np.random.default_rng((list(CLIPS).index(split), number))
        waves.append(say(WORDS[label], *VOICES[split][speaker], generator))
        labels.append(label)
        speakers.append(speaker)
    return rows(waves, labels, WORDS, speakers)


def rows(
    waves: Sequence[np.ndarray], labels: Sequence[int], words: Sequence[str], speakers: Sequence[str]
) -> datasets.Dataset:
    """Columns audio (WAV bytes), label and text (one of `words`), speaker."""
    string = datasets.Value("string")
    audio = {"bytes": datasets.Value("binary"), "path": string}  # datasets.Audio would ask for torchcodec here
    features = datasets.Features(
        {"audio": audio, "label": datasets.ClassLabel(names=list(words)), "text": string, "speaker": string}
    )
    columns = {
        "audio": [{"bytes": wav(wave), "path": None} for wave in waves],
        "label": list(labels),
        "text": [words[label] for label in labels],
        "speaker": list(speakers),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def say(word: str, pitch: float, scale: float, generator: np.random.Generator) -> np.ndarray:
    """One take of a word, (S,) float32 at RATE.

    Pulses of the glottis, filtered by formants that glide from vowel to vowel.
    """
    count = len(word)
    num_frames = int(generator.uniform(0.4, 0.8) * RATE * count / 2) // FRAME
    time = np.linspace(0, 1, num_frames * FRAME)
    source = voiced(pitch, time, generator)
    borders = [generator.uniform((number + 0.8) / count, (number + 1.2) / count) for number in range(count - 1)]
    width = generator.uniform(0.03, 0.06) * 2 / count
    vowels = [np.array(VOWELS[vowel]) * scale * generator.uniform(0.93, 1.07, size=3) for vowel in word]
    formants, place = vowels[0], np.linspace(0, 1, num_frames)[:, None]  # (frames, 1)
    for border, vowel in zip(borders, vowels[1:], strict=True):
        mix = 1 / (1 + np.exp(-(place - border) / width))  # 0 before, 1 at the next vowel
        formants = (1 - mix) * formants + mix * vowel  # (frames, 3)
    wave = filtered(source, responses(formants)) * np.minimum(1, np.minimum(time, 1 - time) * 12)
    return recorded(wave, generator)


def voiced(pitch: float, time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What the glottis and the lips make of a pitch in Hz that trembles and glides, (S,).

    `time`: 0 to 1, from the first sample to the last.
    """
    jitter = 1 + 0.01 * np.cumsum(generator.normal(size=len(time))) / np.sqrt(len(time))
    height = pitch * generator.uniform(0.92, 1.08)
    glide = 1 + generator.uniform(-0.15, 0.15) * time
    phase = np.cumsum(height * glide * jitter / RATE)
    pulses = np.diff(np.floor(phase), prepend=0) + 0.03 * generator.normal(size=len(time))  # and a little breath
    glottis = lfilter([1], [1, -1.9, 0.9025], pulses)  # -12 dB per octave
    return np.diff(glottis, prepend=0)  # +6 at the lips


def recorded(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A wave in noise, by a microphone and at a level of its own, (S,) float32."""
    noise = generator.normal(size=len(wave))
    wave = wave / wave.std() + noise * generator.uniform(0.1, 0.5)  # 20 to 6 dB
    wave = np.asarray(lfilter([1, generator.uniform(-0.6, 0.6)], [1], wave))  # another microphone for every take
    return (wave * generator.uniform(0.2, 0.9) / np.abs(wave).max()).astype(np.float32)


def responses(formants: np.ndarray) -> np.ndarray:
    """What a cascade of resonators does to the frequencies of each FRAME: (frames, 3) Hz -> (frames, frequencies)."""
    radius = np.exp(-np.pi * BANDWIDTHS / RATE)
    middle = -2 * radius * np.cos(2 * np.pi * np.minimum(formants, 0.48 * RATE) / RATE)  # (frames, 3)
    top = (1 + middle + radius**2)[..., None]  # (frames, 3, 1)
    resonators = top / (1 + middle[..., None] * DELAY + radius[:, None] ** 2 * DELAY**2)  # (frames, 3, frequencies)
    return np.prod(resonators, axis=1)


def filtered(source: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The source (S,) through resonators that move every FRAME, (frames, frequencies)."""
    return joined(spectra(pieces_of(source)) * response, len(source))


def pieces_of(source: np.ndarray) -> np.ndarray:
    """Overlapping pieces of (S,), which fade in and out and sum to it, (frames, 2 FRAME)."""
    padded = np.pad(source, (0, FRAME))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * FRAME)[::FRAME]
    return pieces * np.hanning(2 * FRAME + 1)[:-1]


def spectra(pieces: np.ndarray) -> np.ndarray:
    """Of pieces with room to ring out, (frames, frequencies)."""
    return np.fft.rfft(pieces, SIZE)


def joined(spectra: np.ndarray, length: int) -> np.ndarray:
    """The pieces of some spectra (frames, frequencies), added up where they lie, (length,)."""
    rings = np.fft.irfft(spectra, SIZE)
    steps = -(-SIZE // FRAME)  # of a FRAME, into which a piece rings
    rings = np.pad(rings, ((0, 0), (0, steps * FRAME - SIZE))).reshape(len(rings), steps, FRAME)
    wave = np.zeros((len(rings) + steps - 1, FRAME))
    for step in reversed(range(steps)):
        wave[step : step + len(rings)] += rings[:, step]
    return wave.reshape(-1)[:length]


def wav(wave: np.ndarray, rate: int = RATE) -> bytes:
    """The bytes of a file, 16 bits a sample."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
