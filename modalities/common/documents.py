"""What a sample of text files is: a line, or a whole file, whose class is the folder that it lies in."""

from pathlib import Path

import datasets

from d2v.modalities.common.encodings import open_text
from d2v.modalities.common.folders import below
from d2v.modalities.common.kinds import TEXTS, is_of, named
from d2v.modalities.common.media import media_files

AUTO, LINE, DOCUMENT = "auto", "line", "document"
SAMPLES_BY = (AUTO, LINE, DOCUMENT)
LARGEST = 1 << 16  # bytes of a mean file, beyond which it is a book and no sample, unless it is asked for
FEW = 0.1  # of the files, which may lie beside the folders of classes, as README.txt does


def documents(files: list[Path], root: Path, split: str, sample_by: str) -> tuple[datasets.Dataset | None, list[str]]:
    """A row for each text file below `root`, its "text", "file" and, in class folders, "label"; and what is said of it.

    None: lines are the samples. `sample_by` auto: files are, where they lie in class folders. ValueError: as
    media_files.
    """
    if sample_by == LINE:
        return None, []
    inside = [file for file in files if len(below(file, root)) > 1]
    beside = [file for file in files if len(below(file, root)) == 1]
    described = None
    if inside and len(beside) <= FEW * len(files):
        described = media_files(inside, root, split, TEXTS)
        label = described.features.get("label")
        if isinstance(label, datasets.ClassLabel) and len(label.names) < 2:
            described = None
    if described is None:
        if sample_by == AUTO:
            return None, []
        return _read(datasets.Dataset.from_dict({"file": [str(file) for file in files]})), ["a sample is a file"]
    mean = sum(file.stat().st_size for file in inside) // len(inside)
    if sample_by == AUTO and mean > LARGEST:
        return None, [
            f"a sample is a line, as files have {mean // 1024} KiB: their folders are no classes "
            "(data.sample_by=document takes whole files, and the folders as classes)"
        ]
    said = ["a sample is a file, its folder the class (data.sample_by=line takes lines, without classes)"]
    if beside:
        said.append(f"not read, beside the folders of classes: {len(beside)} ({named(beside)})")
    return _read(described), said


def are_documents(dataset: datasets.Dataset) -> bool:
    """Whether each row is a text file."""
    if "file" not in dataset.column_names or not len(dataset):
        return False
    name = dataset[0]["file"]
    return isinstance(name, str) and is_of(Path(name), TEXTS)


def _read(described: datasets.Dataset) -> datasets.Dataset:
    """The rows of files, first of all with their text."""
    texts = datasets.Dataset.from_dict({"text": [_text(Path(name)) for name in described["file"]]})
    return datasets.concatenate_datasets([texts, described], axis=1)


def _text(file: Path) -> str:
    with open_text(file) as opened:
        return opened.read().strip()
