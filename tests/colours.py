"""A world of four colours: a picture, a tone and words of each, on disk as a table, for tests of several modalities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230), "yellow": (230, 220, 40)}
TONES = dict(zip(COLOURS, (300, 700, 1300, 2300), strict=True))  # Hz


def write_world(
    folder: Path, count: int, *, side: int = 8, least: int = 4000, noun: str = "square", more: Sequence[str] = ()
) -> Path:
    """table.csv with the columns image, audio, text and label, `count` rows of each colour and `more`; and its files.

    `side` in pixels; `least` samples of a tone.
    """
    generator = np.random.default_rng(0)
    (folder / "files").mkdir(parents=True)
    lines = ["image,audio,text,label"]
    for number in range(count):
        for name, colour in COLOURS.items():
            pixels = np.clip(np.array(colour) + generator.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "files" / f"{name}{number}.png")
            wave = np.sin(2 * np.pi * TONES[name] * np.arange(least + 200 * number) / 8000)
            wave += generator.normal(0, 0.05, len(wave))
            soundfile.write(folder / "files" / f"{name}{number}.wav", 0.3 * wave, 8000)
            lines.append(f"files/{name}{number}.png,files/{name}{number}.wav,a {name} {noun},{name}")
    (folder / "table.csv").write_text("\n".join([*lines, *more]) + "\n")
    return folder / "table.csv"
