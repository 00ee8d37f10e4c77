"""Who says what is written: voices of training and others for testing, and what makes the sound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from d2v.modalities.speech import espeak, sentences, synth

FORMANT, ESPEAK = "formant", "espeak"
VOICES = {"train": 30, "test": 10}


class Speech(NamedTuple):
    """The voices of each of VOICES, and what says a text by one of them, (S,) float32 at `rate`."""

    rate: int
    voices: dict[str, list[Any]]
    say: Callable[[str, Any, np.random.Generator], np.ndarray]


def speech(kind: str, generator: np.random.Generator) -> Speech:
    """The voices of a kind, FORMANT or ESPEAK. ValueError: eSpeak NG is not installed."""
    if kind == ESPEAK:
        names = generator.permutation(espeak.VARIANTS).tolist()
        voices = espeak.voices(names, generator)
        return Speech(espeak.RATE, _divided(voices), espeak.Espeak().say)
    names = [f"{split}{number}" for split, count in VOICES.items() for number in range(count)]
    return Speech(synth.RATE, _divided(sentences.voices(names, generator)), sentences.say)


def _divided(voices: list[Any]) -> dict[str, list[Any]]:
    return {"train": voices[: VOICES["train"]], "test": voices[VOICES["train"] :]}
