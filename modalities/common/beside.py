"""Texts that lie beside files of another kind: a transcript of a recording, a caption of an image."""

from pathlib import Path

import datasets

from d2v.modalities.common import sources, tables
from d2v.modalities.common.encodings import encoding_of

TEXT = "text"  # the column that they become


def with_texts(dataset: datasets.Dataset) -> datasets.Dataset:
    """Rows of files with the texts that lie beside these, where they have no texts of their own.

    As a.txt beside a.wav or a.jpg, or in LibriSpeech's lists, 84-121123.trans.txt: a line for each recording, its name
    first. Only beside files that are read themselves: the names in an archive are of no files of this machine. Boxes as
    YOLO writes them are no texts.
    """
    if "file" not in dataset.column_names or TEXT in dataset.column_names or _holds_media(dataset):
        return dataset
    texts, listed = list[str | None](), dict[Path, dict[str, str]]()
    for name in tables.cells_of(dataset, "file"):
        file = Path(name or "")
        name = name if file.is_absolute() else None
        if name and file.parent not in listed:
            listed[file.parent] = _listed(file.parent)
        texts.append((listed[file.parent].get(file.stem) or _beside(file)) if name else None)
    if not any(texts) or all(map(_is_boxes, filter(None, texts))):
        return dataset
    return dataset.add_column(TEXT, texts, feature=datasets.Value("string"))


def _holds_media(dataset: datasets.Dataset) -> bool:
    """Whether cells hold media, or say where in an archive they lie."""
    return any(
        isinstance(feature, dict | datasets.Image | datasets.Audio) or "binary" in str(getattr(feature, "dtype", ""))
        for feature in dataset.features.values()
    )


def _is_boxes(text: str) -> bool:
    """Whether a text is a class and four shares of an image for each thing in it."""
    words = text.split()
    return len(words) % 5 == 0 and all(0 <= tables.number(word) <= 1 for n, word in enumerate(words) if n % 5)


def _listed(folder: Path) -> dict[str, str]:
    """What the lists in a folder say of its files, by their names without ending."""
    texts = {}
    for file in sorted(folder.glob(f"*{sources.LISTED}")):
        for line in file.read_text(encoding_of(file), errors="replace").splitlines():
            name, _, text = line.partition(" ")
            texts[name] = " ".join(text.split())
    return texts


def _beside(file: Path) -> str | None:
    """What the text file of a file's name holds, in one line; None: there is none."""
    text = file.with_suffix(".txt")
    if not text.is_file():
        return None
    return " ".join(text.read_text(encoding_of(text), errors="replace").split())
