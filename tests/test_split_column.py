"""A column "split" of tables and metadata divides them, as files and folders of these names do."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from d2v.modalities.common.packing import pack
from d2v.modalities.common.sources import IMAGES, TEXTS, notes, open_source, splits
from d2v.modalities.image.config import DataConfig
from d2v.modalities.image.frontend import FrontendConfig
from d2v.modalities.image.samples import Samples
from d2v.protocols import NoSplitError
from scripts import data

SPLITS = ["train", "val", "test", "train", "test", "train"]  # of six rows


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
    assert any("is 3 of 6 rows, by the column 'split'" in note for note in notes(rows)) == ("train" in split)


@pytest.mark.parametrize("kind", [datasets.Value("string"), datasets.ClassLabel(names=["test", "train", "val"])])
def test_media_in_the_table_itself(kind, folder):
    cells = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in range(6)]
    kinds = datasets.Features({"image": datasets.Image(decode=False), "split": kind})
    datasets.Dataset.from_dict({"image": cells, "split": SPLITS}, features=kinds).to_parquet(folder / "all.parquet")
    opened = open_source(str(folder / "all.parquet"), "test", IMAGES, "image")
    shards_read = Samples(DataConfig(path=str(folder / "all.parquet")), FrontendConfig(), split="test", folder=folder)
    assert [int(np.asarray(shards_read.image(n)).max()) for n in range(2)] == [20, 40]
    assert len(opened) == 2 and splits(opened) == ["train", "val", "test"]


def test_texts(tmp_path):
    lines = [f"row {number},{split}" for number, split in enumerate(SPLITS)]
    (tmp_path / "all.csv").write_text("\n".join(["text,split", *lines]))
    assert open_source(str(tmp_path / "all.csv"), "test", TEXTS, "text")["text"] == ["row 2", "row 4"]


@pytest.mark.parametrize("nothing", [None, "", "  "])
@pytest.mark.parametrize("name", ["all.csv", "all.jsonl"])
def test_rows_of_no_split_are_left_out_and_said(name, nothing, folder):
    path = table(folder, name, ["train", nothing, "test", nothing, "test", "train"])
    rows = open_source(str(path), "train", IMAGES, "image")
    assert [Path(file).stem for file in rows["file"]] == ["0", "5"]
    said = f"split 'train' of {path} is 2 of 6 rows, by the column 'split'; rows that no split takes: 2"
    assert notes(rows) == [said]
    (folder / "packed").mkdir()
    assert pack(str(path), folder / "packed", 1 << 20)[0] == said


def test_blanks_and_capitals_are_the_same_name(folder):
    path = table(folder, "all.csv", ["TRAIN", "train ", "Test", " test", "VAL", "Train"])
    assert read(path, "train") == read(path, "Training") == [0, 1, 5] and read(path, "test") == [2, 3]
    assert splits(open_source(str(path), "train", IMAGES, "image")) == ["train", "val", "test"]


def test_other_names_beside_those_of_splits_are_splits(folder):
    path = table(folder, "all.csv", ["train", "holdout", "test", "unlabeled", "train", "holdout"])
    assert read(path, "train") == [0, 4] and read(path, "holdout") == [1, 5]
    assert splits(open_source(str(path), "train", IMAGES, "image")) == ["train", "test", "holdout", "unlabeled"]
    path = table(folder, "all.csv", ["train-clean", "train-other", "test-clean"] * 2)
    assert read(path, "train") == [0, 1, 3, 4] and read(path, "train-other") == [1, 4]


def test_a_split_that_the_column_lacks(folder):
    path = table(folder, "all.csv", ["train", "test"] * 3)
    with pytest.raises(NoSplitError, match=r"data.split 'dev': .*all.csv has the splits train, test$"):
        read(path, "dev")
    path = table(folder, "all.csv", ["train", "val", "dev"] * 2)
    with pytest.raises(ValueError, match=r"data.split 'validation': .* has dev and val; name one of them"):
        read(path, "validation")
    assert read(path, "dev") == [2, 5]
    path = table(folder, "all.csv", ["test"] * 6)
    with pytest.raises(NoSplitError, match=r"data.split 'train': .*all.csv has the splits test$"):
        read(path, "train")
    assert read(path, "test") == [*range(6)]


def test_several_tables(folder):
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    for name, values in (("a", ["train"] * 6), ("b", ["train", "test"] * 3)):
        table(folder / name, f"{name}.csv", values)
    every = [folder / "a" / "a.csv", folder / "b" / "b.csv"]
    assert len(open_source([str(path) for path in every], "train", IMAGES, "image")) == 9
    assert read(folder / "**" / "*.csv", "test") == [1, 3, 5]  # type: ignore[arg-type]


def test_a_name_alone_divides_no_table(folder):
    path = table(folder, "train.csv", SPLITS)
    assert read(path, "train") == [0, 3, 5] and read(path, "test") == [2, 4]
    path = table(folder, "train.csv", ["a", "b"] * 3)
    assert len(read(path, "train")) == 6
    with pytest.raises(NoSplitError, match=r"data.split 'test': .* has the splits train"):
        read(path, "test")


@pytest.mark.parametrize(("values", "column"), [(["a", "b", "c"] * 2, "split"), (SPLITS, "part")])
def test_a_column_about_something_else(values, column, folder):
    path = table(folder, "all.csv", values, column)
    rows = open_source(str(path), "train", IMAGES, "image")
    said = ["CAREFUL: the column 'split', with a, b, c, names no split (train, validation, test) and is not read"]
    assert len(rows) == 6 and splits(rows) == [] and notes(rows) == (said if column == "split" else [])
    with pytest.raises(NoSplitError, match=r"data.split 'test': .* has no splits: all of it is 'train'"):
        read(path, "test")


def test_where_the_column_is_not_read_it_is_said(folder, tmp_path_factory):
    careful = "CAREFUL: the files are splits, and their column 'split', with train, val, test, is not read"
    tables = tmp_path_factory.mktemp("tables")
    shutil.copy(table(tables, "train.csv", SPLITS), tables / "test.csv")
    rows = open_source(str(tables), "test", IMAGES, "image")
    assert len(rows) == 6 and careful in notes(rows) and splits(rows) == ["train", "test"]
    described = tmp_path_factory.mktemp("described")
    table(described, "all.csv", SPLITS)
    (described / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: all.csv\n---\n")
    rows = open_source(str(described), "train", IMAGES, "image")
    assert len(rows) == 6 and notes(rows) == ["CAREFUL: the column 'split', with train, val, test, is not read"]


def test_the_report_of_a_run(folder, capsys):
    path = table(folder, "all.csv", SPLITS)
    data.main(["image/data2vec_tiny", f"data.path={path}"])
    said = capsys.readouterr().out
    assert "image: 3 of 3 samples usable" in said and f"split 'train' of {path} is 3 of 6 rows" in said
    assert "splits: train is trained on; test is scored by `d2v evaluate`; not read: val" in said
