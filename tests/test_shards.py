"""Shards hold the samples of a folder: equal batches, to the bit, from tar files, parquet and the folder itself."""

import io
import json
import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from PIL import Image

from d2v import plugins
from d2v.modalities.common import packing, shards
from scripts import data as data_script
from scripts import pretrain

NUMBER = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same images as a folder of classes, as tar shards and as parquet of small groups."""
    root = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for number in range(NUMBER):
        file = root / "folder" / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(file)
    data_script.main(["pack", str(root / "folder"), str(root / "tar"), "size=1"])
    modality = plugins.load("d2v.modalities", "image")
    rows = modality.Samples.open(modality.DataConfig(path=str(root / "folder")), "train")
    cells = [{"bytes": Path(name).read_bytes(), "path": Path(name).name} for name in rows["file"]]
    features = datasets.Features({"image": datasets.Image(), "label": rows.features["label"]})
    (root / "parquet").mkdir()
    for shard, some in enumerate(np.array_split(np.arange(NUMBER), 2)):
        part = {"image": [cells[row] for row in some], "label": [rows["label"][row] for row in some]}
        made = datasets.Dataset.from_dict(part, features=features)
        made.to_parquet(root / "parquet" / f"train-{shard:05d}-of-00002.parquet", batch_size=5)
    return {name: root / name for name in ("folder", "tar", "parquet")}


def opened(path: Path, name: str = "image", **settings):
    modality = plugins.load("d2v.modalities", name)
    data = modality.DataConfig(path=str(path), **settings)
    return modality.Samples(data, modality.FrontendConfig(), split="train", folder=path)


def test_twenty_steps_are_equal_to_the_bit(folders, root, tmp_path):
    more = ["model.frontends.image.image_size=12", "model.frontends.image.patch_size=4", "evaluate.path=''"]
    left = []
    for name, path in folders.items():
        config = tiny.config_of("image", tmp_path / name, *more, f"data.path={path}", "run.save_every=20")
        tiny.loop_of(config)()
        left.append((tiny.losses(tmp_path / name), tiny.checkpoint_tensors(tmp_path / name, 20)))
    (losses, expected), *others = left
    for found_losses, found in others:
        assert found_losses == losses and len(losses) == 20
        tiny.assert_same(found, expected)


@pytest.mark.parametrize("name", ["tar", "parquet"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(name, folders, tmp_path):
    """Seven steps of which five were saved, an end without a save, then the rest: to the bit."""
    more = ["model.frontends.image.image_size=12", "model.frontends.image.patch_size=4", "evaluate.path=''"]
    more += [
        f"data.path={folders[name]}",
        "run.save_every=5",
        "train.steps=9",
        "train.warmup_steps=2",
        "train.batch_size=5",
    ]
    whole, cut = (tiny.arguments("image", tmp_path / folder, *more) for folder in ("whole", "cut"))
    pretrain.main(whole)
    with pytest.raises(KeyboardInterrupt):
        tiny.run_until_interrupted(cut, 7)
    pretrain.main(cut)
    tiny.assert_same(tiny.checkpoint_tensors(tmp_path / "cut", 9), tiny.checkpoint_tensors(tmp_path / "whole", 9))
    assert tiny.losses(tmp_path / "cut") == tiny.losses(tmp_path / "whole")
    assert 5 * 5 % NUMBER  # the fifth step ends no epoch


def test_names_labels_and_pixels_are_those_of_the_folder(folders):
    folder, tar, parquet = (opened(path) for path in folders.values())
    assert tar.ids == folder.ids and tar.column("label").tolist() == ["ab"[label] for label in folder.column("label")]
    assert parquet.column("label").tolist() == folder.column("label").tolist() and parquet.classes == folder.classes
    for other in (tar, parquet):
        sent = pickle.loads(pickle.dumps(other))
        for index in (0, 7, NUMBER - 1):
            assert np.array_equal(sent.image(index), folder.image(index))
    assert tar.report.classes == folder.report.classes == {"a": 12, "b": 12}


def test_parquet_is_not_copied(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset_builder", None)  # which would
    samples = opened(folders["parquet"])
    assert len(samples) == NUMBER and shards.is_place(samples._media.features.arrow_schema.field("image").type)
    groups = pq.ParquetFile(next(folders["parquet"].iterdir())).num_row_groups
    assert groups > 1
    shards._group.cache_clear()
    samples.image(0)
    assert shards._group.cache_info().misses == 1


def test_groups_of_rows_that_are_slow_to_read_are_said(folders, monkeypatch):
    def said() -> list[str]:
        return [note for note in opened(folders["parquet"]).report.notes if "group" in note]

    assert not said()
    monkeypatch.setattr(shards, "HEAVY", 1000)
    (note,) = said()
    assert "a group of rows at a time, here 4 rows and 0 MB for each sample: `d2v data pack SOURCE OUT`" in note
    monkeypatch.setattr(shards, "GROUPS", 6)
    assert not said()  # all of them stay in memory


def test_tar_files_are_looked_into_once(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("d2v.cache.LEAST", 2)
    monkeypatch.setattr("d2v.modalities.common.known.SMALL", 100)
    for file in folders["tar"].iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    first = opened(folders["tar"])
    monkeypatch.setattr(tarfile, "open", None)
    monkeypatch.setattr("d2v.modalities.image.augment.decode", None)
    second = opened(folders["tar"])
    assert second.ids == first.ids and second.origin == first.origin is not None


def test_many_threads_read_a_shard_that_none_has_opened(folders):
    samples = opened(folders["tar"])
    cells = list(samples._media["image"])
    expected = [shards.read(cell) for cell in cells]
    for _ in range(20):
        shards._opened.cache_clear()
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(shards.read, cells)) == expected


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            shard.addfile(about, io.BytesIO(content))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8) + np.arange(8, dtype=np.uint8)[:, None]).save(file, "png")
    return file.getvalue()


def test_a_shard_as_webdataset_writes_it(tmp_path):
    members = {"./x/0.png": png(1), "./x/0.cls": b"3", "./x/0.json": b'{"caption": "one", "height": 8}'}
    members |= {"x/1.cls": b"4", "x/2.seg.png": png(3), "x/2.PNG": png(9), "x/2.txt": b"two", "x/2.cls": b"5"}
    write_tar(tmp_path / "some-000.tar", members)
    samples = opened(tmp_path)
    assert samples.ids == ["x/0.png", "x/2.PNG"] and samples.column("label").tolist() == [3, 5]
    assert samples.column("caption").tolist() == ["one", None] and samples.column("text").tolist() == [None, "two"]
    assert samples.image(1).getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("cut", [10, 700, 1024])
def test_a_shard_that_is_cut_is_one_line(folders, tmp_path, cut):
    for number in range(2):
        write_tar(tmp_path / f"train-{number}.tar", {f"{number}{place}.png": png(place) for place in range(3)})
    shard = tmp_path / "train-1.tar"
    end = 3 * (512 + 512 * -(-len(png(0)) // 512))
    shard.write_bytes(shard.read_bytes()[: end + 1024 - cut - 512])
    with pytest.raises(ValueError, match=r"train-1.tar is cut, or no tar file \(.*\): fetch it again") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_missing_is_one_line(folders, tmp_path):
    for number in (0, 1, 3):
        write_tar(tmp_path / f"train-{number:04d}.tar", {f"{number}.png": png(number)})
    with pytest.raises(
        ValueError, match=r"1 of 4 shards .*train-\*.tar are missing, the first is number 2: bring them"
    ):
        opened(tmp_path)
    assert len(opened(tmp_path / "train-*.tar")) == 3
    (tmp_path / "half").mkdir()
    first = next(file for file in folders["parquet"].iterdir() if "00000-of" in file.name)
    (tmp_path / "half" / first.name).write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"1 of 2 shards .*parquet are missing, the first is number 1"):
        opened(tmp_path / "half")


def test_a_shard_that_goes_during_a_run_is_an_unreadable_sample(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{place}.png": png(place) for place in range(3)})
    samples = opened(tmp_path)
    shards._opened.cache_clear()
    (tmp_path / "a.tar").unlink()
    with pytest.raises(packing.shards.UnreadableError, match=r"a.tar cannot be read: .*No such file"):
        samples.image(0)


def test_recordings_with_columns_are_packed_by_split(tmp_path):
    draw = np.random.default_rng(0)
    for split, number in (("train", 5), ("test", 2)):
        (tmp_path / "clips" / split).mkdir(parents=True)
        lines = []
        for clip in range(number):
            soundfile.write(tmp_path / "clips" / split / f"c.{clip}.wav", draw.normal(0, 0.1, 8000), 16000)
            lines.append(json.dumps({"file_name": f"c.{clip}.wav", "text": f"clip {clip}", "speaker": clip % 2}))
        (tmp_path / "clips" / split / "metadata.jsonl").write_text("\n".join(lines))
    said = packing.pack(str(tmp_path / "clips"), Path(tmp_path / "out").mkdir() or tmp_path / "out", 40_000)
    assert said == ["train: 5 audio samples in 3 shards", "test: 2 audio samples in 1 shard"]
    packed, plain = opened(tmp_path / "out", "speech"), opened(tmp_path / "clips", "speech")
    assert packed.lengths.tolist() == plain.lengths.tolist() == [8000] * 5 and packed.report.splits == ["train", "test"]
    for index in range(5):
        assert np.array_equal(packed.wave(index), plain.wave(index))
    assert packed.column("text").tolist() == plain.column("text").tolist()
    assert packed.column("speaker").tolist() == plain.column("speaker").tolist()


@pytest.mark.parametrize(
    ("ending", "subtype", "packed_as"),
    [
        ("wav", "PCM_16", ".flac"),
        ("wav", "PCM_24", ".flac"),
        ("wav", "PCM_U8", ".flac"),
        ("wav", "FLOAT", ".wav"),
        ("ogg", "VORBIS", ".wav"),
    ],
)
def test_parts_of_recordings_are_packed_as_recordings(ending, subtype, packed_as, tmp_path):
    """Also of two channels and another rate, beside a part that lies past the end and a file that is missing."""
    draw, source = np.random.default_rng(0), tmp_path / "source"
    source.mkdir()
    soundfile.write(source / f"a.{ending}", draw.normal(0, 0.1, (22050 * 4, 2)), 22050, subtype=subtype)
    rows = [("a", 0.5, 1.25, "x"), ("a", 2, 3.3, "y"), ("a", 3.9, 9, "z"), ("gone", 0, 1, "x"), ("a", "", "", "y")]
    lines = ["file,start,end,label"] + [f"{name}.{ending},{start},{end},{label}" for name, start, end, label in rows]
    (source / "table.csv").write_text("\n".join(lines))
    (tmp_path / "out").mkdir()
    said = packing.pack(str(source / "table.csv"), tmp_path / "out", 10**9)
    assert said[0] == "train: 3 audio samples in 1 shard"
    assert said[1].startswith("left out, cannot be read: 2: ") and "ends at 9 s, and the recording has 4 s" in said[1]
    with tarfile.open(next((tmp_path / "out").iterdir())) as shard:
        names = [member.name for member in shard]
    assert [name for name in names if name.endswith(packed_as)][:2] and not [n for n in names if n.endswith(".json")]
    settings = {"max_bad_share": 0.5}
    packed, plain = opened(tmp_path / "out", "speech", **settings), opened(source / "table.csv", "speech", **settings)
    assert packed.lengths.tolist() == plain.lengths.tolist() and len(packed) == 3
    for index in range(3):
        assert np.array_equal(packed.wave(index), plain.wave(index))


def test_a_broken_picture_in_a_shard_is_named_alike_at_each_start(tmp_path):
    write_tar(tmp_path / "a.tar", {**{f"{place}.png": png(place) for place in range(30)}, "bad.png": b"no picture"})
    (bad,) = opened(tmp_path, max_bad_share=0.5).report.unreadable
    assert bad[1] == "UnidentifiedImageError: cannot identify image file of these bytes"
    assert bad[0].endswith("bad.png")


def test_a_table_of_sound_is_not_packed_as_images_and_a_link_to_nothing_is_left_out(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    soundfile.write(source / "b.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (source / "a.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "first").mkdir()
    said = packing.pack(str(source), tmp_path / "first", 10**9)
    assert said == ["train: 1 audio sample in 1 shard", "left out, cannot be read: 1: a.wav: No such file or directory"]
    (source / "table.csv").write_text("file\na.wav\nb.wav\n")
    (tmp_path / "second").mkdir()
    assert packing.pack(str(source / "table.csv"), tmp_path / "second", 10**9) == said
    (source / "b.wav").unlink()
    with pytest.raises(ValueError, match=r"none of 2 audio samples of .* can be read: a.wav: No such file"):
        packing.pack(str(source / "table.csv"), tmp_path / "first", 10**9)


def test_what_cannot_be_packed_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="usage: d2v data pack SOURCE OUT"):
        data_script.main(["pack", str(tmp_path)])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    with pytest.raises(ValueError, match="has no image files"):
        data_script.main(["pack", str(tmp_path / "texts"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_text_is_tokenized_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "lines.txt"
    file.write_text("some words and more of them\n" * 300)
    os.utime(file, (time.time() - 3600,) * 2)
    monkeypatch.setattr("d2v.modalities.common.known.SMALL", 1000)
    data_script.main(["tokenize", "text/demo", f"data.path={tmp_path}", "data.vocab_size=300"])
    said = capsys.readouterr().out
    assert "300 of 300 samples usable" in said and f"kept in {tmp_path / 'cache'}" in said
    assert len([*(tmp_path / "cache" / "tokens").rglob("tokens.npy")]) == 1
    with pytest.raises(ValueError, match="only text is tokenized"):
        data_script.main(["tokenize", "image/demo"])
    monkeypatch.setenv("D2V_CACHE", "/dev/null/no")
    with pytest.raises(ValueError, match="nothing can be kept in /dev/null/no: set D2V_CACHE"):
        data_script.main(["tokenize", "text/demo", f"data.path={tmp_path}"])
