"""Texts that lie beside files of another kind: a transcript of a recording, a caption of an image."""

from pathlib import Path

import datasets

from d2v.modalities.common import sources, tables
from d2v.modalities.common.encodings import encoding_of

TEXT = "text"  # the column that they become


def with_texts(dataset: datasets.Dataset) -> datasets.Dataset:
    """Rows of files with the texts that lie beside these, where they have no texts of their own.

    As a.txt beside a.wav or a.jpg, or in LibriSpeech's lists, 84-121123.trans.txt: a line for each recording, its name
    first.
    """
    if "file" not in dataset.column_names or TEXT in dataset.column_names:
        return dataset
    texts, listed = list[str | None](), dict[Path, dict[str, str]]()
    for name in tables.cells_of(dataset, "file"):
        file = Path(name or "")
        if name and file.parent not in listed:
            listed[file.parent] = _listed(file.parent)
        texts.append((listed[file.parent].get(file.stem) or _beside(file)) if name else None)
    if not any(texts):
        return dataset
    return dataset.add_column(TEXT, texts, feature=datasets.Value("string"))


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
