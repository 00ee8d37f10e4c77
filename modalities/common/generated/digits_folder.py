"""Digits on disk in three folders, image, speech and text, by the same ten class names: pairs go by class.

Each has train/ and test/: the images, speakers and templates of one are not in the other.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from d2v.modalities.common.generated import speech
from d2v.modalities.common.generated.digits import NAMES, TEMPLATES, Recording, recordings, texts
from d2v.modalities.common.generated.folder import write_table
from d2v.modalities.speech import synth
from d2v.settings import check_fields, setting

TEST_IMAGES = 400  # of 1,797
TAKES = {"train": 5, "test": 4}  # of each digit by each voice
TEST_SPEAKERS = 1 / 3  # of recordings


@dataclass
class DigitsConfig:
    """Where spoken digits are from."""

    speech: str = setting(
        "",
        "A folder or table of spoken digits by several speakers, such as FSDD, whose files are copied; empty: they are "
        "synthesised.",
        place=True,
    )
    seed: int = setting(0, "Of everything that is drawn.", least=0)

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        check_fields(self, "digits")


def fill(folder: Path, config: DigitsConfig) -> list[str]:
    """Writes the three folders; returns what there is. ValueError: recordings that cannot be used."""
    images, spoken, words = (np.random.default_rng((config.seed, place)) for place in range(3))
    if config.speech:
        found, notes = recordings(config.speech)
        by_split = _divided(found, config.speech, spoken)
    else:
        by_split, notes = _synthesised(spoken), []
    said = [_images(folder / "image", images), _speech(folder / "speech", by_split), _text(folder / "text", words)]
    return [*said, *notes]


def _images(folder: Path, generator: np.random.Generator) -> str:
    """Scikit-learn's digits of 8 x 8 pixels, in folders of their classes."""
    from sklearn.datasets import load_digits  # only this needs it

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))  # (1797, 64) in 0 to 16, (1797,)
    order = generator.permutation(len(digits))
    for split, rows in (("train", order[TEST_IMAGES:]), ("test", order[:TEST_IMAGES])):
        for row in rows:
            place = folder / split / NAMES[int(digits[row])] / f"{row:04}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(pixels[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(place)
    return f"image: {len(order) - TEST_IMAGES} pictures of 8 x 8 pixels in train, {TEST_IMAGES} others in test"


def _synthesised(generator: np.random.Generator) -> dict[str, list[Recording]]:
    spoken = speech.speech(speech.FORMANT, generator)
    by_split: dict[str, list[Recording]] = {}
    for split, voices in spoken.voices.items():
        by_split[split] = []
        for voice in voices:
            for digit, word in enumerate(NAMES):
                for _ in range(TAKES[split]):
                    wave = synth.wav(spoken.say(word, voice, generator), spoken.rate)
                    by_split[split].append(Recording(digit, voice.name, wave, ".wav"))
    return by_split


def _divided(found: list[Recording], path: str, generator: np.random.Generator) -> dict[str, list[Recording]]:
    """Recordings by split, each speaker in one. ValueError: there is one speaker alone."""
    speakers = sorted({one.speaker for one in found})
    if len(speakers) < 2:
        raise ValueError(f"speech={path} has one speaker, {speakers[0]}; two or more are needed: one is kept for test")
    order = generator.permutation(speakers).tolist()
    of_test = order[: max(1, round(TEST_SPEAKERS * len(order)))]
    by_split: dict[str, list[Recording]] = {"train": [], "test": []}
    for one in found:
        by_split["test" if one.speaker in of_test else "train"].append(one)
    return by_split


def _speech(folder: Path, by_split: dict[str, list[Recording]]) -> str:
    """Recordings in folders of their classes, with metadata.csv, which names their speakers."""
    for split, recorded in by_split.items():
        rows = []
        for number, one in enumerate(recorded):
            name = f"{NAMES[one.digit]}/{number:05}{one.suffix}"
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / split / name).write_bytes(one.content)
            rows.append({"file_name": name, "label": NAMES[one.digit], "speaker": one.speaker})
        write_table(folder / split / "metadata.csv", rows)
    counts = []
    for split, recorded in by_split.items():
        counts.append(f"{len(recorded)} recordings by {len({one.speaker for one in recorded})} speakers in {split}")
    return f"speech: {', '.join(counts)}"


def _text(folder: Path, generator: np.random.Generator) -> str:
    folder.mkdir(parents=True)
    counts = []
    for split in TEMPLATES:
        rows = texts(split, generator)
        write_table(folder / f"{split}.csv", rows)
        counts.append(f"{len(rows)} texts of {len(TEMPLATES[split])} templates in {split}")
    return f"text: {', '.join(counts)}"
