"""Opening what a user has: folders, tables, text, lists; what the errors say; the report; seeding."""

import io
import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from d2v.modalities.common import tables
from d2v.modalities.common.data_report import Report
from d2v.modalities.common.sampling import seeded_globals
from d2v.modalities.common.sources import AUDIO, IMAGES, TEXTS, notes, open_source
from d2v.modalities.common.sources import splits as sources_splits
from d2v.modalities.speech.audio import encoded


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def files(dataset, root: Path) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in dataset["file"]]


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3), shade).save(file, "png")
    return file.getvalue()


# Folders.


def test_a_folder_of_any_depth_in_sorted_order(tmp_path):
    touch(tmp_path, "b.jpg", "a/deep/er/c.PNG", "a/a.jpeg", ".hidden/x.jpg", "a/.x.jpg", "notes.txt", "z.wav")
    dataset = open_source(str(tmp_path), "train", IMAGES, "image")
    assert files(dataset, tmp_path) == ["b.jpg", "a/a.jpeg", "a/deep/er/c.PNG"] and dataset.column_names == ["file"]
    assert all(Path(file).is_absolute() for file in dataset["file"])
    assert files(open_source(tmp_path, "train", AUDIO, "audio"), tmp_path) == ["z.wav"]
    assert tables.media_column(dataset, "image") == "file"
    assert tables.identifiers(dataset, str(tmp_path), "train") == files(dataset, tmp_path)


def test_labels_are_the_first_sub_folders(tmp_path):
    touch(tmp_path, "dog/a.jpg", "cat/b/c.jpg", "cat/a.jpg")
    dataset = open_source(str(tmp_path), "train", IMAGES, "image")
    assert files(dataset, tmp_path) == ["cat/a.jpg", "cat/b/c.jpg", "dog/a.jpg"] and list(dataset["label"]) == [0, 0, 1]
    assert tables.classes(dataset, "label") == ["cat", "dog"]


def test_a_stray_file_beside_the_folders_is_told(tmp_path):
    """It leaves all others without a class."""
    folder = touch(tmp_path, "b/1.png", "a/x/2.png", "a/3.png", "top.png")
    opened = open_source(str(folder), "train", IMAGES, "image")
    assert opened.column_names == ["file"]
    assert notes(opened) == ["no classes by folder, as 1 of 4 files lie in none: top.png"]
    touch(tmp_path, "0.png", "1.png", "2.png")
    assert not notes(open_source(str(folder), "train", IMAGES, "image"))  # files in no folders, and some that are


def test_split_folders(tmp_path):
    touch(tmp_path, "train/dog/a.jpg", "train/cat/a.jpg", "test/dog/b.jpg")
    for split, labels in (("train", [0, 1]), ("test", [1])):  # cat is 0 and dog is 1 in both
        dataset = open_source(str(tmp_path), split, IMAGES, "image")
        assert list(dataset["label"]) == labels and tables.classes(dataset, "label") == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"data.split 'validation': .* has the splits test, train"):
        open_source(str(tmp_path), "validation", IMAGES, "image")


def test_an_undivided_folder_is_train_only(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"data.split 'test': .* has no splits: all of it is 'train'"):
        open_source(str(tmp_path), "test", IMAGES, "image")


def test_a_class_called_train_is_a_class(tmp_path):
    touch(tmp_path, "bus/a.jpg", "car/a.jpg", "train/a.jpg")
    assert tables.classes(open_source(str(tmp_path), "train", IMAGES, "image"), "label") == ["bus", "car", "train"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata(tmp_path, kind):
    touch(tmp_path, "a.wav", "sub/b.wav", "c.wav")
    rows = [{"file_name": "sub/b.wav", "label": "no", "age": 7}, {"file_name": "a.wav", "label": "yes", "age": 30}]
    if kind == "csv":
        text = "file_name,label,age\n" + "".join(f"{r['file_name']},{r['label']},{r['age']}\n" for r in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"metadata.{kind}").write_text(text)
    dataset = open_source(str(tmp_path), "train", AUDIO, "audio")
    assert files(dataset, tmp_path) == ["a.wav", "c.wav", "sub/b.wav"] and list(dataset["label"]) == ["yes", None, "no"]
    assert tables.classes(dataset, "label") == ["no", "yes"]
    assert tables.values(dataset, "label", np.array([0, 2]), ["a", "b"]).tolist() == ["yes", "no"]
    with pytest.raises(ValueError, match=r"1 of 3 samples have no 'label', the first is c"):
        tables.values(dataset, "label", np.arange(3), ["a", "c", "b"])
    (tmp_path / "c.wav").unlink()
    ages = list(open_source(str(tmp_path), "train", AUDIO, "audio")["age"])
    assert ages == (["30", "7"] if kind == "csv" else [30, 7])  # a csv holds what is written, JSON has numbers
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match=r"names 1 files that do not exist, the first is .*a\.wav"):
        open_source(str(tmp_path), "train", AUDIO, "audio")


def test_metadata_above_the_splits_and_without_file_names(tmp_path):
    touch(tmp_path, "train/a.wav", "test/b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/a.wav,3\ntest/b.wav,5\n")
    assert list(open_source(str(tmp_path), "test", AUDIO, "audio")["label"]) == ["5"]
    (tmp_path / "metadata.csv").write_text("name,label\na,3\n")
    with pytest.raises(ValueError, match=r"has no column 'file_name'; its columns are name, label"):
        open_source(str(tmp_path), "test", AUDIO, "audio")


# Files, lists, tables.


def test_single_files_and_lists_and_globs(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "more/c.jpg")
    assert files(open_source(str(tmp_path / "b.jpg"), "train", IMAGES, "image"), tmp_path) == ["b.jpg"]
    listed = open_source([str(tmp_path / "b.jpg"), str(tmp_path / "more")], "train", IMAGES, "image")
    assert files(listed, tmp_path) == ["b.jpg", "more/c.jpg"]
    assert files(open_source(str(tmp_path / "*.jpg"), "train", IMAGES, "image"), tmp_path) == ["a.jpg", "b.jpg"]
    assert len(open_source(str(tmp_path / "**" / "*.jpg"), "train", IMAGES, "image")) == 3


def test_a_list_of_folders_unites_their_classes(tmp_path):
    touch(tmp_path, "one/cat/a.jpg", "one/dog/b.jpg", "two/ant/a.jpg", "two/dog/b.jpg")
    dataset = open_source([str(tmp_path / "one"), str(tmp_path / "two")], "train", IMAGES, "image")
    assert tables.classes(dataset, "label") == ["ant", "cat", "dog"] and list(dataset["label"]) == [1, 2, 0, 2]


def parquet(path: Path, shades: list[int]) -> None:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    cells = [{"bytes": png(shade), "path": None} for shade in shades]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(
        {"image": cells, "label": [shade % 2 for shade in shades]}, features=features
    ).to_parquet(path)


def test_folders_of_parquet(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [1, 2])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [3])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [4])
    dataset = open_source(str(tmp_path), "train", IMAGES, "image")
    assert (
        len(dataset) == 3
        and tables.media_column(dataset, "image") == "image"
        and tables.classes(dataset, "label") == ["x", "y"]
    )
    assert encoded(dataset[2]["image"]) == png(3)
    assert tables.identifiers(dataset, str(tmp_path), "train") == ["train:0", "train:1", "train:2"]
    assert len(open_source(str(tmp_path), "train[:2]", IMAGES, "image")) == 2
    assert len(open_source(str(tmp_path), "train[:2]+test", IMAGES, "image")) == 3
    with pytest.raises(ValueError, match=r"data.split 'train\+dev': .* has the splits train, test"):
        open_source(str(tmp_path), "train+dev", IMAGES, "image")
    with pytest.raises(ValueError, match=r"data.split 'validation': .* has the splits train, test"):
        open_source(str(tmp_path), "validation", IMAGES, "image")
    one = str(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert len(open_source(one, "test", IMAGES, "image")) == 1
    with pytest.raises(ValueError, match=r"data\.split 'train'"):  # the file says that it is the test split
        open_source(one, "train", IMAGES, "image")
    assert len(open_source(str(tmp_path / "data" / "*.parquet"), "train", IMAGES, "image")) == 3


def test_a_readme_with_configs_decides(tmp_path):
    parquet(tmp_path / "a.parquet", [1])
    parquet(tmp_path / "b.parquet", [2, 3])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b.parquet\n---\n# data\n"
    )
    assert len(open_source(str(tmp_path), "train", IMAGES, "image")) == 2


def test_audio_in_parquet_stays_encoded(tmp_path):
    features = datasets.Features({"audio": datasets.Audio(decode=False), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"audio": [{"bytes": b"abc", "path": None}], "text": ["hi"]}).cast(features).to_parquet(
        tmp_path / "a.parquet"
    )
    dataset = open_source(str(tmp_path), "train", AUDIO, "audio")
    assert encoded(dataset[0][tables.media_column(dataset, "audio")]) == b"abc"
    assert tables.media_column(dataset, "text") == "text"
    with pytest.raises(ValueError, match=r"no column holds image; the columns are .*audio"):
        tables.media_column(
            dataset.select_columns(["text", "audio"])
            .rename_column("audio", "sound")
            .remove_columns("sound")
            .add_column("audio", [1]),
            "image",
        )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_paths_are_relative_to_the_table(tmp_path, kind):
    touch(tmp_path, "clips/a.wav", "clips/b.wav")
    rows = [("clips/a.wav", "one"), (str(tmp_path / "clips/b.wav"), "two")]
    table = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps({"file": file, "text": text}) + "\n" for file, text in rows))
    else:
        separator = "," if kind == "csv" else "\t"
        table.write_text("".join(separator.join(row) + "\n" for row in [("file", "text"), *rows]))
    dataset = open_source(str(table), "train", AUDIO, "audio")
    assert [encoded(cell) for cell in dataset["file"]] == [
        tmp_path / "clips/a.wav",
        tmp_path / "clips/b.wav",
    ]
    assert tables.media_column(dataset, "audio") == "file" and list(dataset["text"]) == ["one", "two"]


# Text.


def test_lines_of_text(tmp_path):
    for name, text in {"train.txt": "a b\n\nc\n", "test.txt": "d\n"}.items():
        (tmp_path / name).write_text(text)
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == ["a b", "", "c"]
    assert list(open_source(str(tmp_path), "test", TEXTS, "text")["text"]) == ["d"]
    assert list(open_source(str(tmp_path / "test.txt"), "test", TEXTS, "text")["text"]) == ["d"]
    with pytest.raises(ValueError, match="has the splits test, train"):
        open_source(str(tmp_path), "validation", TEXTS, "text")


def test_texts_without_splits_and_tables_of_text(tmp_path):
    for name, text in {"b.txt": "2\n", "sub/a.txt": "1\n"}.items():
        (tmp_path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "books" / name).write_text(text)
    dataset = open_source(str(tmp_path / "books"), "train", TEXTS, "text")
    assert list(dataset["text"]) == ["2", "1"] and tables.media_column(dataset, "text") == "text"
    (tmp_path / "x.csv").write_text("sentence,label\nhello,1\n")
    assert tables.media_column(open_source(str(tmp_path / "x.csv"), "train", TEXTS, "text"), "text") == "sentence"


# Errors.


def test_errors_say_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path is required: a folder of image files"):
        open_source("", "train", IMAGES, "image")
    with pytest.raises(ValueError, match=rf"data.path '.*' does not exist \(looked for {tmp_path}/no/where\)"):
        open_source(str(tmp_path / "no" / "where"), "train", IMAGES, "image")
    with pytest.raises(ValueError, match="is an empty folder"):
        open_source(str(tmp_path), "train", IMAGES, "image")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for wrong, right in (("photo/cats", "photos"), ("photos/cast", "photos/cats")):
        with pytest.raises(ValueError, match=rf"looked for {tmp_path}/{wrong}; {tmp_path}/{right} is there\)"):
            open_source(str(tmp_path / wrong), "train", IMAGES, "image")
    (tmp_path / "photos" / "cats").rmdir()
    (tmp_path / "photos").rmdir()
    touch(tmp_path, "a.wav", "b.wav", "c.md")
    with pytest.raises(ValueError, match=r"has no image files: found 2 \.wav, 1 \.md; image files are \.jpg"):
        open_source(str(tmp_path), "train", IMAGES, "image")
    with pytest.raises(ValueError, match=r"has no image files: found 1 \.wav"):
        open_source(str(tmp_path / "a.wav"), "train", IMAGES, "image")
    with pytest.raises(ValueError, match="matches no file"):
        open_source(str(tmp_path / "*.jpg"), "train", IMAGES, "image")
    with pytest.raises(
        ValueError,
        match=r"'someone/no-such-data' is no local file or folder \(looked for .*\); as a Hub data set cannot be read",
    ):
        open_source("someone/no-such-data", "train", IMAGES, "image")


def test_without_network_a_name_on_the_hub_is_one_line_that_says_what_to_give(monkeypatch):
    def unreachable(*_):
        raise ConnectionError("Couldn't reach 'someone/data' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        ValueError, match=r"'someone/data' .*the Hub could not be reached .*; give data.path="
    ) as caught:
        open_source("someone/data", "train", IMAGES, "image")
    assert "\n" not in str(caught.value)


def test_damaged_tables_are_errors_of_the_user(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(str(tmp_path), "train", IMAGES, "image")


def test_cells():
    assert encoded({"bytes": b"x", "path": "y"}) == b"x" and encoded({"bytes": None, "path": "y"}) == Path("y")
    assert encoded("y") == Path("y") and encoded(b"x") == b"x"
    for empty in (None, "", {"bytes": None, "path": None}):
        with pytest.raises(ValueError, match="empty cell"):
            encoded(empty)


# Report.


def test_report():
    bad = [(f"{number}.jpg", "cut off") for number in range(7)]
    report = Report(
        "image",
        found=100,
        usable=92,
        unreadable=bad,
        too_short=[("s.jpg", "2 x 2")],
        classes={"cat": 90, "dog": 2},
        amount="3 hours",
    )
    text = report.lines()
    assert text[0] == "image: 92 of 100 samples usable, 3 hours"
    assert text[1].startswith("unreadable: 7: 0.jpg (cut off)") and text[1].endswith("4.jpg (cut off), ...")
    assert text[2:] == ["too short: 1: s.jpg (2 x 2)", "classes: 2: cat 90, dog 2"]
    report.check(0.08, "photos")
    with pytest.raises(
        ValueError, match=r"8\.0% of the image samples of photos are bad, data.max_bad_share is 7\.0%: 0\.jpg: cut off"
    ):
        report.check(0.07, "photos")
    with pytest.raises(ValueError, match="none of the 3 image samples of photos is usable: a: long"):
        Report("image", found=3, usable=0, too_long=[("a", "long")]).check(1.0, "photos")


# Seeding.


def draw() -> tuple:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_seeded_repeats_and_restores():
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with seeded_globals(np.random.default_rng(5)):
        first = draw()
    assert draw() == expected
    with seeded_globals(np.random.default_rng(5)):
        assert draw() == first
    with seeded_globals(np.random.default_rng(6)):
        assert draw() != first
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded_globals(np.random.default_rng(5)):
        raise KeyError(draw())
    assert torch.equal(state, torch.get_rng_state())


# What datasets' save_to_disk wrote.


def saved_images(folder: Path, *, as_splits: bool) -> Path:
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(n), "path": None} for n in range(6)], "label": [n % 2 for n in range(6)]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}),
    )
    parts = {"train": rows.select(range(4)), "test": rows.select(range(4, 6))}
    (datasets.DatasetDict(parts) if as_splits else rows).save_to_disk(str(folder))
    return folder


def test_a_saved_data_set_is_read_undecoded(tmp_path):
    whole = open_source(str(saved_images(tmp_path / "whole", as_splits=False)), "train", IMAGES, "image")
    assert [encoded(cell) for cell in whole["image"]] == [png(n) for n in range(6)]
    assert tables.classes(whole, "label") == ["no", "yes"] and whole["label"] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"data.split 'test': data.path .*whole has the splits train"):
        open_source(str(tmp_path / "whole"), "test", IMAGES, "image")


@pytest.mark.parametrize(
    ("split", "shades"), [("train", [0, 1, 2, 3]), ("test", [4, 5]), ("test+train[:1]", [4, 5, 0]), ("train[3:]", [3])]
)
def test_splits_of_a_saved_data_set(split, shades, tmp_path):
    folder = saved_images(tmp_path / "parts", as_splits=True)
    rows = open_source(str(folder), split, IMAGES, "image")
    assert [encoded(cell) for cell in rows["image"]] == [png(shade) for shade in shades]
    assert sources_splits(rows) == ["train", "test"]


def test_a_saved_data_set_that_is_cut_is_one_line(tmp_path):
    folder = saved_images(tmp_path / "cut", as_splits=False)
    next(folder.glob("*.arrow")).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"^data.path .*cut cannot be read: ") as caught:
        open_source(str(folder), "train", IMAGES, "image")
    assert "\n" not in str(caught.value)


# Real data.


@pytest.mark.parametrize(
    ("name", "split", "extensions", "kind", "count"),
    [
        ("cifar10", "test", IMAGES, "image", 10000),
        ("clothing10", "validation", IMAGES, "image", 341),
        ("fsdd", "test", AUDIO, "audio", 300),
        ("eltec_novels", "test", TEXTS, "text", 5111),
        ("clinc150", "validation", TEXTS, "text", 3100),
    ],
)
def test_real_data(shared, name, split, extensions, kind, count):
    dataset = open_source(str(shared / "data" / name), split, extensions, kind)
    assert len(dataset) == count
    cell = dataset[0][tables.media_column(dataset, kind)]
    assert isinstance(cell if kind == "text" else encoded(cell), str if kind == "text" else bytes)
