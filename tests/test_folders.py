"""Folders as users have them: splits by whole names, results among the data, litter, loops of links, odd names."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v.modalities import image, speech
from d2v.modalities.common import sources, tables
from d2v.modalities.common.sources import AUDIO, IMAGES, TEXTS, open_source


def fill(folder: Path, *names: str, what: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(what)
    return folder


def pictures(folder: Path, *names: str, format: str | None = None) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, format)
    return folder


def images(folder: Path, split: str = "train") -> list[str]:
    dataset = open_source(str(folder), split, IMAGES, "image")
    return [os.path.relpath(file, folder) for file in dataset["file"]]


def said(folder: Path, split: str = "train", extensions=IMAGES) -> list[str]:
    kinds = {IMAGES: "image", AUDIO: "audio", TEXTS: "text"}
    return sources.notes(open_source(str(folder), split, extensions, kinds[extensions]))


def image_samples(folder: Path, split: str = "train", **settings) -> image.Samples:
    data = image.DataConfig(path=str(folder), **settings)
    return image.Samples(data, image.FrontendConfig(image_size=8, patch_size=4), split=split, folder=folder)


# Splits.


@pytest.mark.parametrize("asked", ["train", "training", "Training", "TRAIN"])
def test_training_and_testing_are_splits(tmp_path, asked):
    fill(tmp_path, "Training/cat/a.jpg", "Training/dog/b.jpg", "Testing/dog/c.jpg")
    dataset = open_source(str(tmp_path), asked, IMAGES, "image")
    assert images(tmp_path, asked) == ["Training/cat/a.jpg", "Training/dog/b.jpg"]
    assert tables.classes(dataset, "label") == ["cat", "dog"] and list(dataset["label"]) == [0, 1]
    test = open_source(str(tmp_path), "test", IMAGES, "image")
    assert tables.classes(test, "label") == ["cat", "dog"] and list(test["label"]) == [1]  # the numbers agree
    assert said(tmp_path) == [f"split 'train' of {tmp_path} is {tmp_path}/Training: 2 of 3 files"]


@pytest.mark.parametrize(
    ("folder", "asked"),
    [
        ("dev", "validation"),
        ("valid", "val"),
        ("Val", "valid"),
        ("validation", "dev"),
        ("eval", "test"),
        ("TEST", "test"),
    ],
)
def test_a_split_is_found_by_each_of_its_names(tmp_path, folder, asked):
    fill(tmp_path, f"{folder}/a.jpg", "train/b.jpg")
    assert images(tmp_path, asked) == [f"{folder}/a.jpg"]


def test_two_names_of_a_split_are_told_apart_by_the_exact_one_only(tmp_path):
    fill(tmp_path, "train/a.jpg", "dev/b.jpg", "val/c.jpg")
    assert images(tmp_path, "dev") == ["dev/b.jpg"] and images(tmp_path, "val") == ["val/c.jpg"]
    with pytest.raises(ValueError, match=r"data\.split 'validation': .* has dev and val; name one of them"):
        images(tmp_path, "validation")


def test_files_that_no_split_takes_are_named(tmp_path):
    fill(tmp_path, "Training/a.png", "Training/b.png", "Testing/c.png", "extra/d.png", "extra/e.png", "f.png")
    (line,) = said(tmp_path)
    assert line == (
        f"split 'train' of {tmp_path} is {tmp_path}/Training: 2 of 6 files; "
        f"files that no split takes: 3 in {tmp_path}, {tmp_path}/extra (f.png, d.png, e.png)"
    )


def test_a_folder_that_is_named_is_accepted(tmp_path):
    fill(tmp_path, "Training/cat/a.jpg", "Training/dog/b.jpg", "Mine/cat/c.jpg", "Mine/dog/d.jpg", "Other/e.jpg")
    assert images(tmp_path, "Mine") == ["Mine/cat/c.jpg", "Mine/dog/d.jpg"]
    assert list(open_source(str(tmp_path), "Mine", IMAGES, "image")["label"]) == [0, 1]
    for split in ("train", "Training"):
        assert images(tmp_path / "Training", split) == ["cat/a.jpg", "dog/b.jpg"]
    for split in ("train", "Mine", "mine"):
        assert images(tmp_path / "Mine", split) == ["cat/c.jpg", "dog/d.jpg"]
    with pytest.raises(ValueError, match=r"data\.split 'test': .*Mine has no splits: all of it is 'train'"):
        images(tmp_path / "Mine", "test")


def test_a_folder_called_test_is_read_as_the_test_split(tmp_path):
    fill(tmp_path, "Testing/a.jpg")
    assert images(tmp_path / "Testing", "test") == ["a.jpg"]


def test_one_folder_around_all_of_it_is_looked_into(tmp_path):
    fill(tmp_path, "archive/train/cat/a.jpg", "archive/train/dog/b.jpg", "archive/test/dog/c.jpg")
    assert images(tmp_path, "train") == ["archive/train/cat/a.jpg", "archive/train/dog/b.jpg"]
    assert tables.classes(open_source(str(tmp_path), "train", IMAGES, "image"), "label") == ["cat", "dog"]


def test_a_class_called_train_is_said_to_be_no_split(tmp_path):
    fill(tmp_path, "bus/a.jpg", "car/a.jpg", "train/a.jpg")
    assert len(images(tmp_path)) == 3
    (line,) = said(tmp_path)
    assert line == f"the folder train beside others (bus, car, train) is no split; data.path={tmp_path}/train reads it"


def test_a_word_of_a_file_name_is_no_split(tmp_path):
    for name in ("night_train_to_lisbon.txt", "emma.txt", "the-dev-team.txt", "contest.txt"):
        (tmp_path / name).write_text(f"from {name}\n")
    lines = list(open_source(str(tmp_path), "train", TEXTS, "text")["text"])
    assert lines == [
        f"from {name}" for name in ("contest.txt", "emma.txt", "night_train_to_lisbon.txt", "the-dev-team.txt")
    ]
    assert said(tmp_path, extensions=TEXTS) == []


def test_texts_are_divided_by_whole_names_without_the_numbers_of_shards(tmp_path):
    for name in ("Train.txt", "train-00001-of-00002.txt", "train_2.txt", "test.txt", "other.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    rows = open_source(str(tmp_path), "train", TEXTS, "text")["text"]
    assert list(rows) == ["train-00001-of-00002.txt", "train_2.txt"]  # as it is written
    assert list(open_source(str(tmp_path), "testing", TEXTS, "text")["text"]) == ["test.txt"]
    (line,) = said(tmp_path, "test", TEXTS)
    assert line == (
        f"split 'test' of {tmp_path} is {tmp_path}/test.txt: 1 of 5 files; "
        f"files that no split takes: 1 in {tmp_path} (other.txt)"
    )


def test_texts_in_folders_of_splits(tmp_path):
    for name in ("Train/a.txt", "Train/b.txt", "Test/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == ["Train/a.txt", "Train/b.txt"]
    assert list(open_source(str(tmp_path), "test", TEXTS, "text")["text"]) == ["Test/a.txt"]


@pytest.mark.parametrize(
    "names", [("Training.csv", "Testing.csv"), ("x/train/0.csv", "x/test/0.csv"), ("a/train.csv", "b/test.csv")]
)
def test_tables_are_divided_by_the_same_rule(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text,label\nfrom {name},x\n")
    for split, name in zip(("train", "test"), names, strict=True):
        assert list(open_source(str(tmp_path), split, TEXTS, "text")["text"]) == [f"from {name}"]
    both = open_source(str(tmp_path), "test[:1]+train", TEXTS, "text")
    assert list(both["text"]) == [f"from {names[1]}", f"from {names[0]}"]


def test_tables_of_other_words_are_not_divided(tmp_path):
    for name in ("a_train_ride.csv", "testament.csv"):
        (tmp_path / name).write_text(f"text,label\nfrom {name},x\n")
    assert len(open_source(str(tmp_path), "train", TEXTS, "text")) == 2


def test_media_are_cut_by_the_split_too(tmp_path):
    fill(tmp_path, *(f"{split}/{number}.jpg" for split in ("train", "val") for number in range(4)))
    assert images(tmp_path, "train[:1]+val[2:]") == ["train/0.jpg", "val/2.jpg", "val/3.jpg"]


# Tables among media.


def test_results_among_the_data_are_no_data(tmp_path):
    from d2v.files import record_results

    pictures(tmp_path, "cat/a.png", "dog/b.png")
    table = datasets.Dataset.from_dict({"id": ["a"], "features": [[1.0]]})
    record_results([tmp_path / "features.parquet"])
    table.to_parquet(tmp_path / "features.parquet")
    assert images(tmp_path) == ["cat/a.png", "dog/b.png"] and said(tmp_path) == []
    table.to_parquet(tmp_path / "theirs.parquet")
    assert images(tmp_path) == ["cat/a.png", "dog/b.png"]
    assert said(tmp_path) == ["not read: 1 .parquet (theirs.parquet; data.path=FILE reads a table)"]
    table.to_parquet(tmp_path / "others.parquet")
    assert said(tmp_path) == [
        "not read: 2 .parquet (others.parquet, ...; data.path='FOLDER/**/*.parquet' reads tables)"
    ]
    report = image_samples(tmp_path).report
    assert report.usable == 2 and report.lines()[-1] == said(tmp_path)[0]


def test_texts_beside_tables(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\ngood,1\n")
    (tmp_path / "LICENSE.txt").write_text("all rights\n")
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == ["good"]
    assert said(tmp_path, extensions=TEXTS) == ["not read: 1 .txt (LICENSE.txt)"]
    (tmp_path / "book.txt").write_text("once\n")
    assert "once" in list(open_source(str(tmp_path), "train", TEXTS, "text")["text"])
    assert said(tmp_path, extensions=TEXTS) == ["not read: 1 .csv (reviews.csv; data.path=FILE reads a table)"]


# Litter, links, names.


def test_litter_is_silent_and_makes_no_class(tmp_path):
    fill(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "test/dog/c.jpg", "Thumbs.db", "train/cat/.DS_Store")
    fill(tmp_path, "__MACOSX/train/cat/._a.jpg", "train/__MACOSX/x.jpg", "train/cat/._a.jpg", "test/.hidden/x.jpg")
    (tmp_path / "train/empty/deeper").mkdir(parents=True)
    (tmp_path / "test/void").mkdir()
    dataset = open_source(str(tmp_path), "test", IMAGES, "image")
    assert tables.classes(dataset, "label") == ["cat", "dog"] and list(dataset["label"]) == [1]
    assert images(tmp_path) == ["train/cat/a.jpg", "train/dog/b.jpg"]
    assert len(open_source(f"{tmp_path}/**/*.jpg", "train", IMAGES, "image")) == 2  # a pattern leaves them out too
    assert said(tmp_path) == [f"split 'train' of {tmp_path} is {tmp_path}/train: 2 of 3 files"]


def test_each_real_folder_is_read_once(tmp_path):
    fill(tmp_path, "photos/cat/1.jpg", "photos/cat/2.jpg", "photos/dog/1.jpg", "photos/dog/2.jpg", "elsewhere/5.jpg")
    photos = tmp_path / "photos"
    (photos / "all").symlink_to(photos)  # a loop
    (photos / "cat" / "up").symlink_to("..")
    (photos / "best").symlink_to(photos / "cat")  # sorted before cat, which keeps its name
    (photos / "far").symlink_to(tmp_path / "elsewhere")  # a folder of another place is data
    assert images(photos) == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg", "far/5.jpg"]


def test_names_that_are_no_text_are_named_and_skipped(tmp_path):
    fill(tmp_path, "cat/a.jpg", "dog/b.jpg")
    for name in (b"cat/caf\xe9.jpg", b"dog/\xff.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    assert images(tmp_path) == ["cat/a.jpg", "dog/b.jpg"]
    assert said(tmp_path) == [r"skipped: 2 files whose names are not UTF-8 (rename caf\xe9.jpg, \xff.jpg)"]
    assert len(open_source(f"{tmp_path}/*/*.jpg", "train", IMAGES, "image")) == 2
    for name in ("cat/a.jpg", "dog/b.jpg"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"skipped: 2 files whose names are not UTF-8 \(rename caf"):
        images(tmp_path)


def test_names_with_signs_of_patterns_are_names(tmp_path):
    for name in ("a[1].txt", "b*.txt", "c d.txt", "e?.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    assert list(open_source(str(tmp_path), "train", TEXTS, "text")["text"]) == [
        "a[1].txt",
        "b*.txt",
        "c d.txt",
        "e?.txt",
    ]


# Overlooked files.


def test_every_kind_of_image_is_read_or_named(tmp_path):
    names = ["a.jpg", "b.png", "c.avif", "d.webp", "e.bmp", "f.tga", "g.PPM", "h.gif", "i.tiff", "j.dib"]
    pictures(tmp_path, *names)
    pictures(tmp_path, "k.jfif", "l.jpe", "m", "IMG.0001", format="jpeg")
    fill(tmp_path, "n.heic", "o.heic", "notes.md", "unknown", "README.md", "LICENSE")
    samples = image_samples(tmp_path)
    assert sorted(samples.ids) == sorted([*names, "k.jfif", "l.jpe", "m", "IMG.0001"])
    assert samples.report.usable == 14 == len(samples.view(range(14)).inputs["pixel_values"])
    assert samples.report.notes == [
        "not read: 2 .heic (n.heic, ...; convert to jpg or png), 1 .md (notes.md), "
        "1 files without extension (unknown; give it one)"
    ]


def test_every_kind_of_sound_is_read_or_named(tmp_path):
    wave = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    kinds = {"a.wav": "WAV", "b.flac": "FLAC", "c.ogg": "OGG", "d.sph": "NIST", "e.aifc": "AIFF", "f.voc": "VOC"}
    kinds |= {"g.snd": "AU", "h.rf64": "RF64", "i": "WAV", "j": "FLAC"}
    for name, kind in kinds.items():
        soundfile.write(tmp_path / name, wave, 16000, format=kind)
    fill(tmp_path, "k.aac", "l.aac", "m.m4a", "n.wma", "o")
    data = speech.DataConfig(path=str(tmp_path))
    samples = speech.Samples(data, speech.FrontendConfig(), split="train", folder=tmp_path)
    assert sorted(samples.ids) == sorted(kinds) and all(len(samples.wave(index)) == 16000 for index in range(10))
    assert samples.report.notes == [
        "not read: 2 .aac (k.aac, ...; convert to wav or flac), 1 .m4a (m.m4a; convert to wav or flac), "
        "1 .wma (n.wma; convert to wav or flac), 1 files without extension (o; give it one)"
    ]


def test_a_pipe_without_extension_is_waited_for_by_nobody(tmp_path):
    pictures(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe")
    assert images(tmp_path) == ["a.png"]


def test_a_folder_of_what_cannot_be_read_says_what_to_do(tmp_path):
    fill(tmp_path, "a.aac", "b.aac")
    with pytest.raises(
        ValueError, match=r"has no audio files: found 2 \.aac \(convert to wav or flac\); audio files are \.wav"
    ):
        open_source(str(tmp_path), "train", AUDIO, "audio")
