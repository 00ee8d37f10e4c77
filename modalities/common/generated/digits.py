"""Words, sentences and recordings of the ten digits."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import soundfile

from d2v.modalities.common import sources, tables
from d2v.modalities.speech.audio import encoded

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("{word}", "{figure}", "number {word}")
TEMPLATES = {
    "train": (
        *(
            "it is {}",
            "a picture of {}",
            "say {}",
            "this is {}",
            "i hear {}",
            "somebody says {}",
            "it reads {}",
            "write {}",
        ),
        *("here is {}", "press {}", "the answer is {}", "a photo of {}", "it must be {}", "we count to {}", "page {}"),
        *("she wrote {}", "the sign says {}", "another {}", "not far from {}", "a handwritten {}", "turn to {}"),
        *("he draws a {}", "that was {}", "the last was {}"),
    ),
    "test": (
        *("an image of {}", "the voice said {}", "that looks like {}", "please repeat {}", "they printed {}"),
        *("chapter {}", "we see {}", "it sounds like {}"),
    ),
}
OF_FILE = re.compile(r"(\d)_(.+)_\d+$")  # 7_jackson_32, as FSDD names its files
SUFFIXES = {"WAV": ".wav", "WAVEX": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3", "AIFF": ".aiff"}


class Recording(NamedTuple):
    """A spoken digit."""

    digit: int
    speaker: str
    content: bytes  # of its file
    suffix: str  # .wav


def texts(split: str, generator: np.random.Generator) -> list[dict[str, str]]:
    """Every digit in every form in every template of a split, in a random order: text and label, its name."""
    rows = []
    for digit, word in enumerate(NAMES):
        for template in TEMPLATES[split]:
            for form in FORMS:
                text = template.format(form.format(word=word, figure=digit))
                rows.append({"text": text, "label": word})
    return [rows[place] for place in generator.permutation(len(rows))]


def recordings(path: str) -> tuple[list[Recording], list[str]]:
    """The spoken digits of a folder or table of any splits, and what is said of those that were left out.

    Digit and speaker stand in the columns label or text, and speaker, or in the names of files, as in 7_jackson_32.wav.
    ValueError: the source cannot be opened, or holds none.
    """
    try:
        dataset = sources.open_source(path, "train", sources.AUDIO, "audio")
        if len(sources.splits(dataset)) > 1:
            dataset = sources.open_source(path, "+".join(sources.splits(dataset)), sources.AUDIO, "audio")
    except ValueError as error:
        raise ValueError(str(error).replace("data.path", "speech")) from None
    media = tables.cells_of(dataset, tables.media_column(dataset, "audio"))
    ids = tables.identifiers(dataset, path, "train")
    found, left = [], []
    for name, cell, (digit, speaker) in zip(ids, media, _said(dataset, ids), strict=True):
        try:
            source = encoded(cell)
            content = source if isinstance(source, bytes) else source.read_bytes()
            suffix = SUFFIXES[soundfile.info(io.BytesIO(content)).format]
        except (OSError, ValueError, KeyError, soundfile.LibsndfileError):
            left.append(name)
            continue
        if digit is None or not speaker:
            left.append(name)
            continue
        found.append(Recording(digit, speaker, content, suffix))
    if not found:
        raise ValueError(
            f"speech={path} has no digits by speakers ({len(left)} recordings): it needs columns label (0 to 9, or "
            "zero to nine) and speaker, or files named as 7_jackson_32.wav"
        )
    some = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
    return found, [f"left out, as they cannot be read or name no digit and speaker: {len(left)}: {some}"] * bool(left)


def _said(dataset: datasets.Dataset, ids: list[str]) -> list[tuple[int | None, str]]:
    """Digit and speaker of each row, None and "" where nothing says them."""
    columns = [name for name in ("label", "text") if name in dataset.column_names]
    rows = np.arange(len(dataset))
    cells = {name: tables.cells(dataset, name, rows).tolist() for name in columns}
    speakers = tables.cells(dataset, "speaker", rows).tolist() if "speaker" in dataset.column_names else []
    said = []
    for row, name in enumerate(ids):
        named = OF_FILE.search(Path(name).stem)
        digits = [digit for column in columns if (digit := _digit(cells[column][row])) is not None]
        digit = digits[0] if digits else int(named[1]) if named else None
        speaker = speakers[row] if speakers else named[2] if named else ""
        said.append((digit, str(speaker or "")))
    return said


def _digit(cell: Any) -> int | None:
    """0 to 9 of a number, a figure or a word; None: it is none."""
    text = str(cell).strip().lower()
    if text in NAMES:
        return NAMES.index(text)
    return int(text) if re.fullmatch("[0-9]", text) else None
