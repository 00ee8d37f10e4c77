"""Scenes on disk: a table for each split, whose rows name a picture and a recording and hold the caption.

Masks and boxes of the things lie beside them, as `evaluate.masks` and image/detect_tiny read them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from d2v.modalities.common.generated import captions, drawing, scenes, speech
from d2v.modalities.common.generated.folder import write_table
from d2v.modalities.speech import synth
from d2v.settings import check_fields, setting

SPLITS = ("train", "test", "combinations")
MOST_THINGS = len(scenes.NUMBERS)


@dataclass
class ScenesConfig:
    """How many scenes, how large, and who says their captions."""

    train: int = setting(4000, "Scenes of the split train.", least=1, limit=100_000)
    test: int = setting(1000, "Scenes of the split test, and as many of combinations.", least=1, limit=100_000)
    size: int = setting(32, "Pixels of a side.", least=24, limit=1024)
    seed: int = setting(0, "Of everything that is drawn.", least=0)
    voice: str = setting(
        speech.FORMANT,
        "formant: d2v's own synthesiser, which says each word letter by letter; espeak: eSpeak NG, if it is installed.",
        among=(speech.FORMANT, speech.ESPEAK),
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        check_fields(self, "scenes")


def fill(folder: Path, config: ScenesConfig) -> list[str]:
    """Writes all splits; returns what there is. ValueError: voice=espeak, which is not installed."""
    spoken = speech.speech(config.voice, np.random.default_rng((config.seed, len(SPLITS))))
    counts = {"train": config.train, "test": config.test, "combinations": config.test}
    boxes: list[dict[str, Any]] = []
    with tqdm(total=sum(counts.values()), unit="scene", disable=None) as bar:
        for place, split in enumerate(SPLITS):
            for name in ("images", "audio", "masks/images"):
                (folder / name / split).mkdir(parents=True)
            rows = []
            generator = np.random.default_rng((config.seed, place))
            drawn = scenes.different(counts[split], generator, held_out=split == "combinations")
            for number, scene in enumerate(drawn):
                own = np.random.default_rng((config.seed, place, 1 + number))  # a scene is drawn alike among any others
                name = f"{split}/{number:0{len(str(counts[split] - 1))}}"
                found = _picture(folder, name, scene, config.size, own)
                boxes += [{**box, "split": split} for box in found]
                rows.append(_row(folder, name, scene, spoken, own))
                bar.update()
            write_table(folder / f"{split}.csv", rows)
    write_table(folder / "boxes.csv", boxes)
    (folder / "README.md").write_text(_card(config), "utf-8")
    said = ", ".join(f"{count} scenes in {split}" for split, count in counts.items())
    voices = ", ".join(f"{len(some)} voices of {split}" for split, some in spoken.voices.items())
    return [f"{said}; {voices}; the pairs {', '.join(map(' '.join, scenes.HELD_OUT))} are in combinations alone"]


def _picture(folder: Path, name: str, scene: scenes.Scene, size: int, generator: np.random.Generator) -> list[dict]:
    """Writes picture and mask; returns the boxes, rows of boxes.csv."""
    picture = drawing.draw(scene, size, generator)
    Image.fromarray(picture.pixels).save(folder / f"images/{name}.png")
    Image.fromarray(picture.mask).save(folder / f"masks/images/{name}.png")
    rows = []
    for thing, box in zip(scene.things, picture.boxes, strict=True):
        sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        rows.append(
            {"file": f"images/{name}.png", "label": thing.shape, **sides, "size": thing.size, "colour": thing.colour}
        )
    return rows


def _row(
    folder: Path, name: str, scene: scenes.Scene, spoken: speech.Speech, generator: np.random.Generator
) -> dict[str, Any]:
    """Writes the recording; returns the row of the split's table."""
    text = captions.caption(scene, generator)
    voices = spoken.voices["train" if name.startswith("train/") else "test"]
    voice = voices[generator.integers(len(voices))]
    wave = spoken.say(text, voice, generator)
    (folder / f"audio/{name}.wav").write_bytes(synth.wav(wave, spoken.rate))
    row = {"image": f"images/{name}.png", "audio": f"audio/{name}.wav", "text": text, "speaker": voice.name}
    row |= {"things": len(scene.things), "relation": scene.relation}
    for place in range(MOST_THINGS):
        thing = scene.things[place] if place < len(scene.things) else scenes.Thing("", "", "")
        row |= {f"{key}{place + 1}": value for key, value in thing._asdict().items()}
    return row


def _card(config: ScenesConfig) -> str:
    """README.md, whose head says which table is which split, as the Hub's data sets do."""
    files = "\n".join(f"  - {{split: {split}, path: {split}.csv}}" for split in SPLITS)
    classes = ", ".join(f"{number} {shape}" for number, shape in enumerate(scenes.SHAPES, 1))
    pairs = ", ".join(map(" ".join, scenes.HELD_OUT))
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---
# Scenes

Drawn and said by `d2v data scenes` (made.yaml has the settings). A row of a table is one scene: a picture (`image`),
its caption (`text`), the caption said by a synthesiser (`audio`, by `speaker`), how many `things` there are, the
`relation` of the first to the second, and `size1`, `colour1`, `shape1`, ... of each. No two rows of a split say the
same.

* `train`: {config.train} scenes. `test`: {config.test} others, by voices that train has not.
* `combinations`: {config.test} scenes by the voices of test, in each of which one thing is of a colour and shape that
  stand together in neither of the others: {pairs}.
* `boxes.csv`: the boxes of all things, in pixels; `label` is the shape.
* `masks/`: class numbers of all pixels, by the names of the pictures: 0 the ground, {classes}.
"""
