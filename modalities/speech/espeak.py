"""Says sentences by eSpeak NG, where the optional package espeakng-loader is installed: pip install 'd2v[espeak]'.

The library, which is under the GPL, is called through ctypes and no part of d2v.
"""

import ctypes
import importlib
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import resample_poly

from d2v.modalities.speech.synth import recorded

RATE = 16000
PACKAGE = "espeakng_loader"
# Voices of people among the variants of its data; others are of robots, whispers or croaks.
VARIANTS = (
    *("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Gene", "Henrique", "Jacky", "Lee", "Mario", "Michael"),
    *("Mike", "adam", "anika", "belinda", "benjamin", "boris", "david", "edward", "linda", "max", "michel", "pablo"),
    *("paul", "steph", "travis"),
)
# Of its speak_lib.h: parameters; calls that return when all is said; texts in UTF-8; places counted in characters.
SPEED, PITCH = 1, 3
SYNCHRONOUS, UTF8, CHARACTERS = 2, 1, 1
HEARD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Voice(NamedTuple):
    """Who speaks."""

    name: str  # one of VARIANTS
    pitch: float  # 0 to 99, of which 50 is the variant's own
    speed: float  # words a minute


def voices(names: list[str], generator: np.random.Generator) -> list[Voice]:
    """A voice for each name."""
    return [Voice(name, generator.uniform(35, 65), generator.uniform(150, 210)) for name in names]


class Espeak:
    """The library, as it is when a process starts; the same calls in the same order give the same samples.

    It keeps where its flutter is, and nothing sets that back: so each object loads a copy of its own.
    """

    def __init__(self):
        """ValueError: the package is not there, or its library cannot be loaded."""
        try:
            package: Any = importlib.import_module(PACKAGE)
        except ModuleNotFoundError:
            raise ValueError(
                "voice=espeak needs the package espeakng-loader, which is not installed: pip install 'd2v[espeak]', "
                "or say voice=formant"
            ) from None
        library = Path(package.get_library_path())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                self._library = ctypes.CDLL(shutil.copy(library, folder))
            except OSError as error:
                raise ValueError(f"voice=espeak: {library} cannot be loaded: {error}") from None
        self._given = self._library.espeak_Initialize(SYNCHRONOUS, 0, package.get_data_path().encode(), 0)
        if self._given <= 0:
            raise ValueError(f"voice=espeak: {library} does not take the data in {package.get_data_path()}")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self._heard: list[np.ndarray] = []
        self._hear = HEARD(self._take)  # must live as long as the library calls it
        self._library.espeak_SetSynthCallback(self._hear)

    def _take(self, samples: Any, number: int, events: Any) -> int:
        if number > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (number,)).astype(np.float32))
        return 0

    def say(self, text: str, voice: Voice, generator: np.random.Generator) -> np.ndarray:
        """One take of a sentence, (S,) float32 at RATE. ValueError: the library has no such voice."""
        self._heard.clear()
        if self._library.espeak_SetVoiceByName(f"en+{voice.name}".encode()):
            raise ValueError(f"voice=espeak: the installed espeakng-loader has no voice {voice.name!r}; update it")
        self._library.espeak_SetParameter(SPEED, round(voice.speed * generator.uniform(0.95, 1.05)), 0)
        self._library.espeak_SetParameter(PITCH, round(voice.pitch + generator.uniform(-4, 4)), 0)
        words = text.encode()
        self._library.espeak_Synth(words, len(words) + 1, 0, CHARACTERS, 0, UTF8, None, None)
        common = math.gcd(RATE, self._given)
        wave = resample_poly(np.concatenate(self._heard), RATE // common, self._given // common)
        return recorded(wave, generator)
