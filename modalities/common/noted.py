"""What a data set carries of how it was opened: notes for a person, and the names of all splits."""

from collections.abc import Iterable

import datasets


def notes(dataset: datasets.Dataset) -> list[str]:
    """What is to be said of how `open_source` chose what it read, a line each; parts of the data set keep it."""
    return dataset.info.description.splitlines()


def splits(dataset: datasets.Dataset) -> list[str]:
    """The names of the splits that what `open_source` read is divided into; one or none: it is not."""
    return list(dataset.info.splits or ())


def with_notes(dataset: datasets.Dataset, said: list[str], names: list[str]) -> datasets.Dataset:
    """The data set itself, which carries these from now on."""
    dataset.info.description = "\n".join(" ".join(note.split()) for note in said)  # names of files may hold line ends
    return with_splits(dataset, names)


def with_splits(dataset: datasets.Dataset, names: Iterable[str]) -> datasets.Dataset:
    """The data set, of which these are said to be its splits."""
    dataset.info.splits = datasets.SplitDict({name: datasets.SplitInfo(name) for name in names})
    return dataset
