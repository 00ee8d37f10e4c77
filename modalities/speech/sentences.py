"""Says sentences by the formant synthesiser, letter by letter: a made-up language in which each word has its own sound.

Every letter of a to z is a phone: formants, how much of it is voice and how much noise, how long it lasts, and for how
much of that the mouth is closed. A word sounds as it is spelt, so that words that differ can be told apart by ear.
"""

from typing import NamedTuple

import numpy as np

from d2v.modalities.speech.synth import (
    DELAY,
    FRAME,
    RATE,
    VOWELS,
    joined,
    pieces_of,
    recorded,
    responses,
    spectra,
    voiced,
)


class Phone(NamedTuple):
    """The sound of a letter."""

    formants: tuple[float, float, float]  # Hz, of a voice whose scale is 1
    voice: float  # loudness
    noise: float
    frames: int
    closed: int = 0  # of these frames, at the start: silence


class Voice(NamedTuple):
    """Who speaks."""

    name: str
    pitch: float  # Hz
    scale: float  # of all formants
    speed: float  # relative to PHONES


PHONES = {
    **{letter: Phone(formants, 1.0, 0.0, 4) for letter, formants in VOWELS.items()},
    "y": Phone((280, 2200, 2900), 0.7, 0.0, 3),
    "w": Phone((300, 650, 2200), 0.6, 0.0, 3),
    "l": Phone((360, 1300, 2700), 0.5, 0.0, 3),
    "r": Phone((350, 1060, 1400), 0.6, 0.0, 3),
    "m": Phone((260, 900, 2200), 0.35, 0.0, 3),
    "n": Phone((260, 1700, 2600), 0.35, 0.0, 3),
    "v": Phone((300, 1100, 2300), 0.25, 0.1, 3),
    "z": Phone((300, 3000, 3700), 0.25, 0.4, 3),
    "j": Phone((300, 2000, 2600), 0.25, 0.3, 3),
    "s": Phone((2900, 3400, 3800), 0.0, 0.5, 3),
    "c": Phone((1800, 2400, 3000), 0.0, 0.5, 3),
    "f": Phone((900, 1900, 3000), 0.0, 0.2, 3),
    "h": Phone((600, 1500, 2500), 0.0, 0.25, 2),
    "x": Phone((1500, 3000, 3700), 0.0, 0.5, 3, 1),
    "p": Phone((500, 900, 2200), 0.0, 0.5, 2, 1),
    "t": Phone((2400, 3000, 3700), 0.0, 0.6, 2, 1),
    "k": Phone((1300, 1900, 2500), 0.0, 0.6, 2, 1),
    "q": Phone((700, 1300, 2500), 0.0, 0.6, 2, 1),
    "b": Phone((300, 800, 2200), 0.5, 0.1, 2, 1),
    "d": Phone((300, 1700, 2700), 0.5, 0.2, 2, 1),
    "g": Phone((300, 2200, 2400), 0.5, 0.2, 2, 1),
}
PAUSE = Phone(VOWELS["a"], 0.0, 0.0, 2)  # between words
VOICED = np.square(np.abs((1 - DELAY) / (1 - 0.95 * DELAY) ** 2))  # power of `voiced` by frequency
VOICED /= VOICED.sum()
SILENCE = 0.15  # the most seconds before and after a sentence


def voices(names: list[str], generator: np.random.Generator) -> list[Voice]:
    """A voice for each name."""
    return [
        Voice(name, generator.uniform(90, 260), generator.uniform(0.9, 1.2), generator.uniform(1.0, 1.4))
        for name in names
    ]


def say(text: str, voice: Voice, generator: np.random.Generator) -> np.ndarray:
    """One take of a sentence of letters and spaces, (S,) float32 at RATE."""
    formants, gains = _track(text, voice.speed * generator.uniform(0.95, 1.05))
    before, after = generator.uniform(0, SILENCE * RATE / FRAME, 2).astype(int)
    around = ((before, after + 1), (0, 0))  # a frame for what rings out
    gains = np.pad(gains, around)  # (frames, 2)
    formants = (
        np.pad(formants, around, mode="edge") * voice.scale * generator.uniform(0.95, 1.05, size=3)
    )  # (frames, 3)
    response = responses(formants)  # (frames, frequencies)
    power = np.square(np.real(response)) + np.square(np.imag(response))
    gains = gains / np.sqrt(np.stack([power @ VOICED, power.mean(axis=1)], axis=1))  # all phones are as loud as theirs
    length = len(gains) * FRAME
    found = spectra(pieces_of(voiced(voice.pitch, np.linspace(0, 1, length), generator))) * gains[:, :1]
    noisy = np.flatnonzero(gains[:, 1])
    found[noisy] += spectra(pieces_of(generator.normal(size=length))[noisy]) * gains[noisy, 1:]
    return recorded(joined(found * response, length), generator)


def _track(text: str, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Formants (frames, 3) and loudness of voice and noise (frames, 2) of a sentence."""
    formants, gains = [], []
    for letter in text:
        phone = PHONES.get(letter, PAUSE)
        frames = max(phone.closed + 1, round(phone.frames / speed))
        formants += [phone.formants] * frames
        gains += [(0.0, 0.0)] * phone.closed + [(phone.voice, phone.noise)] * (frames - phone.closed)
    return _blurred(np.array(formants)), _blurred(np.array(gains))


def _blurred(track: np.ndarray) -> np.ndarray:
    """Each frame (frames, n) mixed with those beside it: letters run into one another."""
    padded = np.pad(track, ((1, 1), (0, 0)), mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
