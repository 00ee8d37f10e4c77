"""A column "split" of tables and metadata divides them, as files and folders of these names do."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from d2v.modalities.common.sources import IMAGES, TEXTS, notes, open_source, splits
from d2v.protocols import NoSplitError

SPLITS = ["train", "val", "test", "train", "test", "train"]  # of six rows
SAID = "split 'train' is 3 of 6 rows, by the column 'split'"


def shade(number: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), 10 * number, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures, 0.png to 5.png."""
    for number in range(6):
        shade(number).save(tmp_path / f"{number}.png")
    return tmp_path


def table(folder: Path, name: str, values: list, column: str = "split", key: str = "file") -> Path:
    """A table of the pictures, in the form that its name says."""
    rows = {key: [f"{n}.png" for n in range(6)], "label": list("ababab"), column: values}
    path = folder / name
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "\n".join(json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True))
        )
    else:
        lines = [",".join("" if cell is None else cell for cell in row) for row in zip(*rows.values(), strict=True)]
        path.write_text("\n".join([",".join(rows), *lines]))
    return path


def read(path: Path, split: str) -> list[int]:
    """The numbers of the pictures of a split."""
    rows = open_source(str(path), split, IMAGES, "image")
    return [int(Path(file).stem) for file in rows["file"]]


@pytest.mark.parametrize("name", ["all.csv", "all.jsonl", "all.parquet", "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", [0, 3, 5]),
        ("test", [2, 4]),
        ("eval", [2, 4]),
        ("validation", [1]),
        ("train+val", [0, 3, 5, 1]),
        ("train[1:]+test[:1]", [3, 5, 2]),
    ],
)
def test_the_rows_of_a_split(name, split, numbers, folder):
    described = name.startswith("metadata")
    path = table(folder, name, SPLITS, key="file_name" if described else "file")
    path = folder if described else path
    assert read(path, split) == numbers
    rows = open_source(str(path), split, IMAGES, "image")
    assert splits(rows) == ["train", "val", "test"] and rows["label"] == ["ab"[number % 2] for number in numbers]
    assert (SAID in notes(rows)) == ("train" in split)


def test_media_in_the_table_itself(folder):
    cells = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in range(6)]
    kinds = datasets.Features({"image": datasets.Image(decode=False), "split": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": cells, "split": SPLITS}, features=kinds)
    rows.to_parquet(folder / "all.parquet")
    opened = open_source(str(folder / "all.parquet"), "test", IMAGES, "image")
    assert len(opened) == 2 and splits(opened) == ["train", "val", "test"]


def test_texts(tmp_path):
    lines = [f"row {number},{split}" for number, split in enumerate(SPLITS)]
    (tmp_path / "all.csv").write_text("\n".join(["text,split", *lines]))
    assert open_source(str(tmp_path / "all.csv"), "test", TEXTS, "text")["text"] == ["row 2", "row 4"]


def test_rows_of_no_split_are_left_out_and_said(folder):
    path = table(folder, "all.csv", ["train", None, "test", None, "test", "train"])
    rows = open_source(str(path), "train", IMAGES, "image")
    assert [Path(file).stem for file in rows["file"]] == ["0", "5"]
    assert notes(rows) == ["split 'train' is 2 of 6 rows, by the column 'split'; rows that no split takes: 2"]


def test_a_split_that_the_column_lacks(folder):
    path = table(folder, "all.csv", ["train", "test"] * 3)
    with pytest.raises(NoSplitError, match=r"data.split 'dev': .* has the splits train, test$"):
        read(path, "dev")
    path = table(folder, "all.csv", ["train", "val", "dev"] * 2)
    with pytest.raises(ValueError, match=r"data.split 'validation': .* has dev and val; name one of them"):
        read(path, "validation")
    assert read(path, "dev") == [2, 5]


@pytest.mark.parametrize(
    ("values", "column"), [(["a", "b", "train"] * 2, "split"), (["train"] * 6, "split"), (SPLITS, "part")]
)
def test_a_column_about_something_else(values, column, folder):
    path = table(folder, "all.csv", values, column)
    rows = open_source(str(path), "train", IMAGES, "image")
    assert len(rows) == 6 and splits(rows) == [] and notes(rows) == []
    with pytest.raises(NoSplitError, match=r"data.split 'test': .* has no splits: all of it is 'train'"):
        read(path, "test")


def test_files_that_are_splits_come_first_and_say_that_a_column_is_not_read(tmp_path):
    shutil.copy(table(tmp_path, "train.csv", SPLITS), tmp_path / "test.csv")
    rows = open_source(str(tmp_path), "test", IMAGES, "image")
    careful = "CAREFUL: the files are splits, and their column 'split', with train, val, test, is not read"
    assert len(rows) == 6 and careful in notes(rows) and splits(rows) == ["train", "test"]
