"""Demo data: ten words of the same four vowels in ten orders, said by many voices of the synthesiser, in noise.

All words have the same sounds, so that a mean spectrum tells voices apart and no words; the voices of one split are not
those of another, and each word begins somewhere in its clip.
"""

import functools

import datasets
import numpy as np

from d2v.modalities.speech import synth
from d2v.protocols import NoSplitError

DEMO = "demo-anagrams"  # of data.path
WORDS = ("aeiu", "auie", "eaui", "eiau", "eiua", "iaeu", "iuea", "uaei", "ueai", "uiea")
CLIPS = {"train": 600, "validation": 200, "test": 200}
VOICES = {"train": 30, "validation": 10, "test": 10}
SILENCE = 0.25  # the most seconds before and after a word


@functools.cache  # a run, its health checks and what scores it open it each
def dataset(split: str) -> datasets.Dataset:
    """Columns audio (WAV bytes), label and text (the word), speaker.

    ValueError: another split than train, validation, test.
    """
    if split not in CLIPS:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(CLIPS)}")
    generator = np.random.default_rng(list(CLIPS).index(split))
    voices = [(generator.uniform(90, 260), generator.uniform(0.92, 1.2)) for _ in range(VOICES[split])]
    waves, labels, speakers = [], [], []
    for number in generator.permutation(CLIPS[split]).tolist():
        label, voice = number % len(WORDS), number // len(WORDS) % len(voices)
        wave = synth.say(WORDS[label], *voices[voice], generator)
        before, after = generator.uniform(0, SILENCE * synth.RATE, 2).astype(int)
        wave = np.pad(wave, (before, after)) + generator.normal(0, 0.02, before + len(wave) + after)
        waves.append(wave.astype(np.float32))
        labels.append(label)
        speakers.append(f"{split} {voice}")
    return synth.rows(waves, labels, WORDS, speakers)
