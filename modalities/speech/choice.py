"""Whether fine-tuning learns letters or classes: as the settings ask, else by what the data has."""

from collections.abc import Sequence
from typing import Any

import datasets

from d2v.config.written import in_home
from d2v.modalities.common import sources, tables
from d2v.modalities.common.beside import TEXT, with_texts
from d2v.modalities.speech import synth

TRANSCRIPTS = (TEXT, "transcript", "transcription", "sentence")  # columns, the first that there is
LABEL = "label"
CLASSES, LETTERS = "classes", "letters"
OF_LETTERS, OF_CLASSES = ("transcript", "case", "decode"), ("label", "regression")  # settings that ask for one


def choose(data: dict[str, Any]) -> tuple[str, dict[str, str], str]:
    """CLASSES or LETTERS, the settings of `data` that name their column, and a line that says which and why.

    Without a setting that asks for one, and without data that can be opened, letters. ValueError: it has neither.
    """
    if any(data.get(name) for name in OF_LETTERS):
        return LETTERS, {}, _said(LETTERS, data.get("transcript", TRANSCRIPTS[0]))
    if any(name in data for name in OF_CLASSES):
        what = "numbers" if data.get("regression") else CLASSES
        return CLASSES, {}, _said(what, data.get("label", LABEL))
    if not data.get("path"):
        return LETTERS, {}, ""
    try:
        dataset = open_labelled(in_home(data["path"]), str(data.get("split", "train")))
    except ValueError:  # the run says so, once all else is known to be right
        return LETTERS, {}, ""
    return _by_columns(dataset, data["path"])


def open_labelled(path: Any, split: str) -> datasets.Dataset:
    """The rows of a split, with the texts that lie beside recordings, as in a.wav and a.txt, as transcripts."""
    if path == "demo":
        return sources.with_splits(synth.dataset(split), ["train", "test"])
    return with_texts(sources.open_source(path, split, sources.AUDIO, "audio"))


def _by_columns(dataset: datasets.Dataset, path: Any) -> tuple[str, dict[str, str], str]:
    """Transcripts before classes, unless all recordings of a class have the same one, as spoken digits do."""
    column = next((name for name in TRANSCRIPTS if name in dataset.column_names), None)
    has_classes = LABEL in dataset.column_names
    if column is None and not has_classes:
        names = ", ".join(tables.column_names(dataset))
        raise ValueError(
            f"data.path {path} has nothing to learn: neither classes (sub-folders, or a column {LABEL!r}) nor "
            f"transcripts (a column {TRANSCRIPTS[0]!r}, or a.txt beside a.wav); its columns are {names}; "
            "data.label or data.transcript names another"
        )
    if column is None:
        return CLASSES, {"label": LABEL}, _said(CLASSES, LABEL, "data.transcript=COLUMN learns letters")
    settings = {"transcript": column}
    if not has_classes:
        return LETTERS, settings, _said(LETTERS, column, "data.label=COLUMN learns classes")
    if _one_each(tables.cells_of(dataset, LABEL), tables.cells_of(dataset, column)):
        why = f"the column {column!r} says the same of all in a class; data.transcript={column} learns its letters"
        return CLASSES, {"label": LABEL}, _said(CLASSES, LABEL, why)
    why = f"there are classes in the column {LABEL!r} too; data.label={LABEL} learns these"
    return LETTERS, settings, _said(LETTERS, column, why)


def _one_each(labels: Sequence[Any], texts: Sequence[Any]) -> bool:
    """Whether all samples of a class have the same text."""
    return len(set(zip(labels, texts, strict=True))) == len(set(labels))


def _said(what: str, column: Any, more: str = "") -> str:
    name = "data.transcript" if what == LETTERS else "data.label"
    return f"learns {what}: the column {column!r} ({name}){f'; {more}' if more else ''}"
