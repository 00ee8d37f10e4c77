"""Tar files as others write them, what packing keeps, and names of splits that begin like train, dev and test."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import test_finetune
import test_joint_run
import tiny
from PIL import Image

from d2v.modalities.common.beside import with_texts
from d2v.modalities.common.sources import AUDIO, IMAGES, notes, open_source, splits
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.source import open_boxes
from d2v.modalities.speech.choice import open_labelled
from d2v.protocols import NoSplitError
from scripts import data, finetune, pretrain


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | str | dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            encoded = (
                content
                if isinstance(content, bytes)
                else (content if isinstance(content, str) else json.dumps(content)).encode()
            )
            about = tarfile.TarInfo(name)
            about.size = len(encoded)
            file.addfile(about, io.BytesIO(encoded))
    return path


def read(path: Path, kind: str = "image") -> datasets.Dataset:
    return open_source(str(path), "train", IMAGES if kind == "image" else AUDIO, kind)


def test_members_of_a_sample_need_not_follow_one_another(tmp_path):
    images = {f"{n}.png": png(n) for n in range(5)}
    labels = {f"{n}.cls": "ab"[n % 2] for n in range(5)}
    apart = read(tar(tmp_path / "apart" / "a.tar", images | labels))
    mixed = {name: one for n in range(5) for name, one in ((f"{n}.cls", labels[f"{n}.cls"]), (f"{n}.png", png(n)))}
    beside = read(tar(tmp_path / "beside" / "a.tar", mixed))
    assert apart["label"] == beside["label"] == ["a", "b", "a", "b", "a"]
    assert apart["file"] == beside["file"] == [*images]


def test_a_member_that_comes_twice_begins_another_sample(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for label in ("x", "y"):
            for name, content in (("0.png", png(0)), ("0.cls", label.encode())):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
    assert read(path)["label"] == ["x", "y"]


def test_a_json_says_nothing_that_a_member_says(tmp_path):
    more = {"image": "no", "file": "other.png", "label": "json", "text": "json", "key": 3}
    first = {"0.json": more, "0.png": png(0), "0.cls": "cls", "0.txt": "words"}
    after = {"1.png": png(1), "1.json": more}
    rows = read(tar(tmp_path / "a.tar", first | after))
    assert rows["file"] == ["0.png", "1.png"] and rows["label"] == ["cls", "json"] and rows["text"] == ["words", "json"]
    assert rows["key"] == [3, 3] and rows["image"][0]["size"] == len(png(0))


@pytest.mark.parametrize("apart", [False, True])
def test_cells_of_several_types_are_what_is_written(apart, tmp_path):
    members = [{f"{n}.png": png(n), f"{n}.json": {"label": label}} for n, label in enumerate([1, "a", 2.5, None])]
    for number, some in enumerate(members if apart else [{k: v for one in members for k, v in one.items()}]):
        tar(tmp_path / f"{number}.tar", some)
    assert read(tmp_path)["label"] == ["1", "a", "2.5", None]


def test_a_second_image_of_a_name_is_told(tmp_path):
    members = {name: png(n) for n in range(3) for name in (f"{n}.png", f"{n}.jpg")}
    rows = read(tar(tmp_path / "a.tar", members))
    assert rows["file"] == ["0.png", "1.png", "2.png"]
    assert "not read: 3 further image members of samples: 0.jpg, 1.jpg, 2.jpg" in notes(rows)


def test_what_ends_like_a_label_and_is_none(tmp_path):
    assert read(tar(tmp_path / "a.tar", {"0.png": png(0), "0.v1.cls": "no", "0.v1.json": "no json"}))["file"] == [
        "0.png"
    ]


def test_gaps_between_two_shards(tmp_path):
    for number in (0, 2):
        tar(tmp_path / f"train-{number:06d}.tar", {f"{number}.png": png(number)})
    with pytest.raises(ValueError, match=r"1 of 3 shards .* are missing, the first is number 1"):
        read(tmp_path)
    for year in (2019, 2021):
        tar(tmp_path / "years" / f"{year}.tar", {f"{year}.png": png(0)})
    assert len(read(tmp_path / "years")) == 2


def librispeech(root: Path) -> Path:
    """Four recordings of each of its splits, with a list of transcripts beside them."""
    for place, name in enumerate(("train-clean-100", "train-other-500", "dev-clean", "test-clean")):
        folder = root / name / "84" / "121"
        folder.mkdir(parents=True)
        lines = []
        for number in range(4):
            wave = np.random.default_rng((place, number)).standard_normal(8000) * 0.1
            soundfile.write(folder / f"84-121-{number:04d}.flac", wave, 8000)
            lines.append(f"84-121-{number:04d} {name.upper()} {number}")
        (folder / "84-121.trans.txt").write_text("\n".join(lines))
    return root


def test_packed_data_has_the_splits_and_the_texts_of_its_source(tmp_path, capsys):
    source = librispeech(tmp_path / "LibriSpeech")
    data.main(["pack", str(source), str(tmp_path / "packed")])
    for split, count in (("train", 8), ("train-clean-100", 4), ("dev", 4), ("test-clean", 4)):
        before, after = (open_labelled(str(path), split) for path in (source, tmp_path / "packed"))
        assert len(after) == len(before) == count and after["text"] == before["text"]
        assert {*splits(after)} == {*splits(before)}
    with pytest.raises(ValueError, match="its shards would be read as data"):
        data.main(["pack", str(source), str(source / "out")])


@pytest.mark.parametrize("plain", ["test", "evaluation"])
def test_names_that_begin_like_splits_beside_a_plain_one(plain, tmp_path):
    for number, name in enumerate(("train-clean", "train_other", "dev-clean", plain)):
        (tmp_path / name).mkdir()
        for one in range(number + 1):
            (tmp_path / name / f"{one}.png").write_bytes(png(one))
    assert [len(open_source(str(tmp_path), one, IMAGES, "image")) for one in ("train", "dev", "test")] == [3, 3, 4]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.png").write_bytes(png(0))
    assert len(read(tmp_path)) == 1  # train does not hold train-clean beside itself


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[10:20]", r"data.split 'train\[10:20\]' takes none of the 6 rows of train"),
        ("train[3]", r"data.split 'train\[3\]' is no slice; it may be train\[:100\]"),
    ],
)
def test_slices_that_take_nothing(split, message, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path), split, IMAGES, "image")
    assert len(open_source(str(tmp_path), "train[4:20]", IMAGES, "image")) == 2


@pytest.mark.parametrize(
    ("name", "cells", "count", "said"),
    [
        (" Split", ("train", "test"), 2, ""),
        ("split", ("0", "1"), 4, "CAREFUL: the column 'split', with 0, 1, names no split (train, validation, test)"),
        ("split", ("same", "same"), 4, ""),
    ],
)
def test_columns_that_are_called_split(name, cells, count, said, tmp_path):
    rows = [f"words {n},{cells[n % 2]}" for n in range(4)]
    (tmp_path / "a.csv").write_text("\n".join([f"text,{name}", *rows]))
    opened = open_source(str(tmp_path), "train", (".txt",), "text")
    assert len(opened) == count
    assert [note for note in notes(opened) if "CAREFUL" in note] == ([f"{said} and is not read"] if said else [])


def test_metadata_without_a_label_leaves_the_classes_of_folders(tmp_path):
    for number in range(4):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
    (tmp_path / "metadata.csv").write_text("file_name,place\na/0.png,x\nb/1.png,y\n,z\n")
    rows = read(tmp_path)
    assert rows["file"] == [str(tmp_path / name) for name in ("a/0.png", "a/2.png", "b/1.png", "b/3.png")] + [None]
    assert rows["place"] == ["x", None, "y", None, "z"] and rows["label"] == [0, 0, 1, 1, -1]
    (tmp_path / "metadata.csv").write_text("file_name,label\na/0.png,x\nb/1.png,y\n")
    assert read(tmp_path)["label"] == ["x", None, "y", None]


def test_names_in_an_archive_are_of_no_files_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "0.txt").write_text("private")
    (tmp_path / "0.txt").write_text("private")
    path = tar(tmp_path / "a.tar", {"0.png": png(0), f"{tmp_path}/home/0.png": png(1)})
    monkeypatch.chdir(tmp_path)
    assert "text" not in with_texts(read(path)).column_names
    data.main(["pack", str(path), str(tmp_path / "packed")])
    with tarfile.open(tmp_path / "packed" / "train-000000.tar") as packed:
        assert not [name for name in packed.getnames() if name.endswith(".txt")]


def test_boxes_as_yolo_writes_them_are_no_captions(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        (tmp_path / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.3\n1 0.1 0.2 0.05 0.06\n")
    assert "text" not in with_texts(read(tmp_path)).column_names
    (tmp_path / "1.txt").write_text("a cat")
    assert "text" in with_texts(read(tmp_path)).column_names


def test_tables_that_begin_like_splits(tmp_path):
    for name, count in (("train_a", 3), ("train_b", 2), ("dev_a", 1)):
        (tmp_path / f"{name}.csv").write_text("text\n" + f"{name}\n" * count)

    def texts(split: str) -> list[str]:
        return open_source(str(tmp_path), split, (".txt",), "text")["text"]

    assert texts("train") == ["train_a"] * 3 + ["train_b"] * 2 and texts("validation") == ["dev_a"]
    assert texts("train[:4]") == ["train_a"] * 3 + ["train_b"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("text\na\n")
    (tmp_path / "other" / "eval_results.csv").write_text("text\nb\n")
    with pytest.raises(NoSplitError):
        open_source(str(tmp_path / "other"), "test", (".txt",), "text")


def test_boxes_in_tables_that_begin_like_splits(tmp_path):
    for number, split in enumerate(("train", "test")):
        (tmp_path / f"{split}.png").write_bytes(png(number))
        lines = ["filename,class,xmin,ymin,xmax,ymax", f"{split}.png,thing,1,1,6,6"]
        (tmp_path / f"{split}_labels.csv").write_text("\n".join(lines))
    for split in ("train", "test"):
        rows = open_boxes(DetectionConfig(path=str(tmp_path), label="class"), split)
        assert [Path(file).name for file in rows["file"]] == [f"{split}.png"]


def test_splits_of_saved_data_that_begin_alike(tmp_path):
    some = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test_easy", "test_hard")}
    datasets.DatasetDict(some).save_to_disk(str(tmp_path))
    assert open_source(str(tmp_path), "test", (".txt",), "text")["text"] == ["test_easy", "test_hard"]
    assert open_source(str(tmp_path), "train", (".txt",), "text")["text"] == ["train"]


@pytest.mark.parametrize("start", ["pretrain", "joint", "finetune"])
def test_a_start_that_is_refused_does_not_bind_its_folder(start, tmp_path, monkeypatch):
    refused = {
        "pretrain": (pretrain.main, tiny.arguments("image", tmp_path, "train.steps=2", "train.warmup_steps=0")),
        "joint": (pretrain.main, test_joint_run.config_of(tmp_path)),
        "finetune": (finetune.main, test_finetune.arguments("image", tmp_path)),
    }
    main, command = refused[start]

    def failing(*_: object) -> None:
        raise ValueError("no such batch")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="no such batch"):
        patched.setattr("d2v.training.loop.make_optimizer", failing)
        main(command)
    assert not (tmp_path / "config.yaml").exists()
    main(command)


@pytest.mark.parametrize("names", [("Training Set", "Test Set"), ("train a", "train b", "test a")])
def test_names_of_splits_with_blanks(names, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(number))
    assert len(read(tmp_path)) == len(names) - 1
    assert len(open_source(str(tmp_path), "+".join(names), IMAGES, "image")) == len(names)
    assert len(open_source(str(tmp_path), f"{names[0]}[:5]", IMAGES, "image")) == 1
