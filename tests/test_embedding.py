"""Features of files.

Independent of what is beside them, windows against the whole, one file out whatever happens, and little memory.
"""

import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
import torch
from PIL import Image

from d2v import plugins
from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.embedding import Part, by_room, embed
from d2v.evaluation.feature_table import Shards
from d2v.evaluation.load_encoder import open_encoder
from d2v.modalities.common import windows
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.protocols import Rows
from scripts import embed as script
from scripts import evaluate

CONV = {
    "kind": "waveform",
    "sample_rate": 8000,
    "conv_dim": 16,
    "conv_kernels": [10, 8, 4],
    "conv_strides": [5, 8, 4],
    "pos_groups": 8,
}
CONV |= {"pos_kernel": 5, "pos_depth": 3, "reference_padding": True}


def save_model(modality: str, folder: Path, frontend: dict | None = None, **data) -> Path:
    """A random model of a demo config made small, with what reads its inputs, as a run exports it."""
    config = tiny.config_of(modality, folder)
    module = plugins.load("d2v.modalities", modality)
    settings = module.FrontendConfig(**(vars(config.frontend) | (frontend or {})))
    folder.mkdir(parents=True)
    module.prepare(config.data, settings, folder, 0)
    torch.manual_seed(0)
    model = D2vModel(D2vConfig({modality: settings}, config.model.trunk))
    model.save_pretrained(folder)
    module.save_preprocessor(folder, folder, config.data, settings)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """One model of each modality; speech reads waveforms, with the reference's quirk."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(name, folder / name, CONV if name == "speech" else None) for name in tiny.MODALITIES}


def write_clips(folder: Path, seconds: list[float], rate: int = 8000) -> Path:
    folder.mkdir(parents=True)
    for number, length in enumerate(seconds):
        soundfile.write(
            folder / f"{number:02}.wav", np.random.default_rng(number).normal(0, 0.1, round(length * rate)), rate
        )
    return folder


def write_lines(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir(parents=True)
    words = ["function", "returns", "value", "class", "method"]
    (folder / "a.txt").write_text("\n".join(" ".join(words[(i + n) % 5] for i in range(n)) for n in sizes) + "\n")
    return folder


def samples_of(modality: str, model: D2vModel, folder: Path, path: Path, **data):
    module = plugins.load("d2v.modalities", modality)
    return module.Samples(
        module.DataConfig(path=str(path), **data),
        module.FrontendConfig(**model.config.frontends[modality]),
        split="train",
        folder=folder,
    )


# Features.


@pytest.mark.parametrize("modality", ["speech", "text"])
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_features_do_not_depend_on_the_batch(models, tmp_path, modality, pool):
    path = (
        write_clips(tmp_path / "a", [0.4, 1.31, 0.7, 0.2])
        if modality == "speech"
        else write_lines(tmp_path / "a", [3, 30, 17, 5])
    )
    encoder = open_encoder(str(models[modality]), modality, quirks=False)
    samples = samples_of(modality, encoder, models[modality], path)
    together, alone = (
        embed(encoder, samples, EmbedConfig(["1", "last"], pool=pool, batch_size=size)) for size in (4, 1)
    )
    assert together.ids == alone.ids == samples.ids and not together.bad
    np.testing.assert_allclose(together.features, alone.features, atol=1e-5, rtol=0)
    assert np.abs(alone.features).max() > 0.1
    if modality == "speech":  # the quirk that is switched off would show
        quirky = open_encoder(str(models[modality]), modality)
        assert (
            np.abs(
                embed(quirky, samples, EmbedConfig(batch_size=4)).features
                - embed(quirky, samples, EmbedConfig(batch_size=1)).features
            ).max()
            > 1e-3
        )


@torch.no_grad()
def test_layers_and_pools_are_the_slow_loop(tmp_path):
    model = save_model("image", tmp_path / "model", {"class_token": True})
    for number in range(3):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    encoder = open_encoder(str(model), "image")
    samples = samples_of("image", encoder, model, tmp_path / "*.png", mean=[0.3], std=[0.4])
    whole = encoder(samples.view([0, 1, 2]), layers="block")
    expected = {
        ("last", "mean"): whole.x.mean(1),
        ("local", "mean"): encoder.embed(samples.view([0, 1, 2])).mean(1),
        ("1,2", "mean"): ((whole.layers[0] + whole.layers[1]) / 2).mean(1),
        ("2", "first"): whole.layers[1][:, 0],
        ("last", "class"): whole.extra[:, 0],
    }
    for (layers, pool), features in expected.items():
        found = embed(encoder, samples, EmbedConfig(layers.split(","), pool=pool, batch_size=2))
        assert isinstance(found, Part) and found.features.dtype == np.float32
        np.testing.assert_allclose(found.features, features.numpy(), atol=1e-6)


def test_settings_that_make_no_sense(models, tmp_path):
    for settings in (
        {"layers": []},
        {"layers": ["all"]},
        {"pool": "max"},
        {"batch_size": 0},
        {"chunk": 0},
        {"overlap": 1.0},
    ):
        with pytest.raises(ValueError, match=f"embed.{next(iter(settings))} is"):
            EmbedConfig(**settings)
    with pytest.raises(ValueError, match=r"embed.pool=class is of the last layer only; embed.layers is \['1'\]"):
        EmbedConfig(["1"], pool="class")
    encoder = open_encoder(str(models["text"]), "text")
    samples = samples_of("text", encoder, models["text"], write_lines(tmp_path / "a", [3]))
    with pytest.raises(ValueError, match=r"this model has no class token"):
        embed(encoder, samples, EmbedConfig(pool="class"))
    with pytest.raises(ValueError, match=r"embed.layers is '3'; this encoder has local, 1, 2, last"):
        embed(encoder, samples, EmbedConfig(["3"]))


def test_batches_take_the_room_of_the_longest():
    lengths = np.random.default_rng(0).integers(5, 40, 1000)
    indices = np.arange(0, 1000, 2)
    batches = by_room(lengths, 4, indices)
    longest = lengths[indices].max()
    assert np.array_equal(np.sort(np.concatenate(batches)), indices)
    assert all(len(batch) * lengths[batch].max() <= 4 * longest for batch in batches)
    for batch, following in pairwise(batches):
        shortest, longest_here, next_length = lengths[batch].min(), lengths[batch].max(), lengths[following].min()
        assert longest_here <= next_length and (len(batch) <= 4 or longest_here <= 1.1 * shortest)
        assert (len(batch) + 1) * next_length > 4 * longest or next_length > 1.1 * shortest  # no more fit
    assert len(batches[0]) > 10 and len(batches[-2]) in (4, 5)
    assert [len(batch) for batch in by_room(None, 4, np.arange(10))] == [4, 4, 2] and by_room(
        lengths, 4, np.arange(0)
    ) == []


# Windows.


@pytest.mark.parametrize("length", [1, 9, 10, 11, 19, 20, 57, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9])
def test_every_token_counts_once_and_has_neighbours(length, overlap):
    cut = windows.cut(length, 10, overlap)
    assert np.concatenate([np.arange(length)[w.first : w.last] for w in cut]).tolist() == list(range(length))
    assert all(w.start <= w.first < w.last <= w.stop and w.stop - w.start == min(length, 10) for w in cut)
    for before, after in pairwise(cut):
        assert before.stop - after.start >= max(2, round(overlap * 10))
        assert after.first > after.start and before.last < before.stop  # neither's border counts
    counts = windows.counted(cut)
    assert counts.shape == (len(cut), min(length, 10)) and int(counts.sum()) == length


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_windows_give_the_whole_where_tokens_know_no_neighbours(models, tmp_path, modality):
    """Local features of 57 or so windows against those of the whole in one piece; a short sample beside it."""
    path = write_clips(tmp_path / "a", [6.3, 0.5]) if modality == "speech" else write_lines(tmp_path / "a", [100, 5])
    short, long = (
        ({"max_seconds": 0.9}, {"max_seconds": 10.0})
        if modality == "speech"
        else ({"block_size": 16}, {"block_size": 512})
    )
    encoder = open_encoder(str(models[modality]), modality)
    in_windows, whole = (
        samples_of(modality, encoder, models[modality], path, **settings) for settings in (short, long)
    )
    assert in_windows.cut.tolist() == [True, False] and not whole.cut.any()
    for size in (3, 100):
        found, expected = (
            embed(encoder, samples, EmbedConfig(["local"], batch_size=size)).features for samples in (in_windows, whole)
        )
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    if (
        modality == "speech"
    ):  # through the trunk they differ: what a token sees is another, and the middle alone is another thing still
        views = [next(in_windows.windows(0, 0.1, 100))[0], in_windows.view([0])]
        assert views[0].inputs["input_values"].shape[0] > 5 and views[1].inputs["input_values"].shape[0] == 1


def growth(model: Path, one: Path, ten: Path, out: Path) -> None:
    """Megabytes by which the peak of memory rises from the first folder's embedding to the second's.

    It is called in a process of its own.
    """
    encoder, peaks = open_encoder(str(model), "speech", quirks=False), []
    for path in (one, ten):
        embed(encoder, samples_of("speech", encoder, model, path, max_seconds=5.0), EmbedConfig(batch_size=4))
        peaks.append(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
    out.write_text(str(peaks[1] - peaks[0]))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak memory from /proc")
def test_ten_minutes_need_little_more_memory_than_one(tmp_path):
    """In one piece, the attention bias alone of ten minutes would take 7 GB: 2 heads x 30,000 x 30,000 tokens."""
    model = save_model("speech", tmp_path / "model", CONV | {"alibi": "head"})
    paths = [write_clips(tmp_path / str(minutes), [60.0 * minutes]) for minutes in (1, 10)]
    assert tiny.wait(tiny.start(growth, model, *paths, tmp_path / "growth")) == [0]
    assert 0 <= float((tmp_path / "growth").read_text()) < 150, (tmp_path / "growth").read_text()


# The script.


def run(model: Path, modality: str, path: Path, out: Path, *more: str) -> None:
    config = tiny.ROOT / "configs" / modality / "demo.yaml"
    script.main([str(config), f"model={model}", f"data.path={path}", f"out={out}", *more])


def test_a_table_in_the_folder_of_the_images_is_no_data_the_next_time(models, tmp_path, capsys):
    photos = tmp_path / "photos"
    for split in ("Training", "Testing"):
        for number in range(3):
            (photos / split).mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 40 * number).save(photos / split / f"{number}.png")
    (photos / "song.aac").write_bytes(b"x")
    ids = [f"Training/{number}.png" for number in range(3)]
    for more in ((), ("run.overwrite=true",)):
        out = photos / "features.parquet"
        run(models["image"], "image", photos, out, "data.split=train", "embed.chunk=2", *more)
        printed = capsys.readouterr().out
        assert pq.read_table(out)["id"].to_pylist() == ids
        line = f"split 'train' of {photos} is {photos}/Training: 3 of 6 files"
        assert printed.count(line) == 1 and printed.count("not read: 1 .aac (song.aac; convert to wav or flac)") == 1
        assert "features.parquet;" not in printed


def test_a_folder_becomes_a_table_and_a_killed_run_goes_on(models, tmp_path, capsys, monkeypatch):
    path = write_clips(tmp_path / "clips", [0.4, 1.1, 0.7, 2.6, 0.5, 0.6, 0.9, 0.3, 0.8, 1.2])
    (path / "03b.wav").write_bytes(b"no audio")
    soundfile.write(path / "05b.flac", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    (path / "05b.flac").write_bytes(
        (path / "05b.flac").read_bytes()[:6000]
    )  # its header promises more: seen when it is read
    settings = ("embed.chunk=4", "embed.batch_size=3", "data.max_seconds=2.0", "data.max_bad_share=0.5")
    run(models["speech"], "speech", path, tmp_path / "whole.parquet", *settings)
    printed = capsys.readouterr().out
    assert "10 samples of 32 numbers" in printed and "left out 2: 03b.wav: " in printed and "05b.flac: " in printed
    table = pq.read_table(tmp_path / "whole.parquet")
    assert table["id"].to_pylist() == [f"{number:02}.wav" for number in range(10)] and not list(
        tmp_path.glob("*.parts")
    )
    features = np.array(table["features"].to_pylist(), dtype=np.float32)
    encoder = open_encoder(str(models["speech"]), "speech", quirks=False)
    expected = embed(
        encoder,
        samples_of("speech", encoder, models["speech"], path, max_seconds=2.0, max_bad_share=0.5),
        EmbedConfig(batch_size=1),
    )
    np.testing.assert_allclose(features, expected.features, atol=1e-5)

    command = (models["speech"], "speech", path, tmp_path / "killed.parquet", *settings)
    assert tiny.wait(tiny.start(run_until_killed, *command)) == [-signal.SIGKILL]
    parts = tmp_path / "killed.parquet.parts"
    assert len(list(parts.glob("0*.parquet"))) == 2 and not (tmp_path / "killed.parquet").exists()
    with pytest.raises(
        ValueError, match=r"parts that were made otherwise \(embed.pool: mean -> first\); run.overwrite=true"
    ):
        run(*command, "embed.pool=first")
    opened = []
    monkeypatch.setattr(script, "Rows", lambda dataset, first: opened.append(first) or Rows(dataset, first))
    run(*command)
    assert opened == [8] and "left out 2: 03b.wav: " in capsys.readouterr().out
    assert (tmp_path / "killed.parquet").read_bytes() == (
        tmp_path / "whole.parquet"
    ).read_bytes() and not parts.exists()
    with pytest.raises(ValueError, match=r"killed.parquet exists; run.overwrite=true replaces it"):
        run(*command)
    run(*command, "run.overwrite=true", "embed.layers=[1,2]", "data.max_bad_share=0.2")
    assert (tmp_path / "killed.parquet").read_bytes() != (tmp_path / "whole.parquet").read_bytes()


def run_until_killed(*command) -> None:
    """Dies by SIGKILL when the third part is about to be written."""
    add = Shards.add

    def dying(self, number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, number, *rest)

    Shards.add = dying  # type: ignore[method-assign]
    run(*command)


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_every_modality_as_an_array(models, tmp_path, modality):
    out = tmp_path / "out" / "features.npy"
    run(models[modality], modality, "demo", out, "data.split=test", "embed.chunk=300")
    features, ids = np.load(out), json.loads((out.parent / "features.ids.json").read_text())
    assert features.shape == (len(ids), 32) and ids[0] == "test:0" and len(set(ids)) == len(ids) > 20
    assert np.isfinite(features).all() and features.std(axis=0).min() > 0
    assert {place.name for place in out.parent.iterdir()} == {".d2v-results", "features.npy", "features.ids.json"}


def test_errors_of_a_command(models, tmp_path):
    path = write_clips(tmp_path / "clips", [0.4])
    (path / "bad.wav").write_bytes(b"no audio")
    (tmp_path / "folder").mkdir()
    for more, message in (
        (
            (),
            r"1 of 2 samples of .*/clips cannot be read \(bad.wav: .*\); "
            r"data.max_bad_share is 0.1; the others are kept in",
        ),
        ((f"out={tmp_path}/a.csv",), "a.csv must end in .parquet or .npy"),
        (("out=",), "usage: d2v embed CONFIG model=PATH"),
        ((f"model={models['text']}",), "reads text, but the config is for speech"),
        ((f"model={tmp_path}/folder",), "is no folder with a config.json"),
        ((f"data.path={tmp_path}/nowhere",), "nowhere' does not exist"),
        (("embed.lay=1",), "unknown key 'embed.lay'.*'layers'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            run(models["speech"], "speech", path, tmp_path / "out.parquet", *more)
        assert "\n" not in str(caught.value)
    run(models["speech"], "speech", path, tmp_path / "out.parquet", "data.max_bad_share=0.5")
    assert len(pq.read_table(tmp_path / "out.parquet")) == 1


@pytest.mark.parametrize("more", [(), ("run.overwrite=true",)])
def test_a_part_whose_files_changed_is_made_again(models, tmp_path, capsys, monkeypatch, more):
    """A folder of six clips, of which two cannot be read; then one is mended, and another one is another clip."""
    path = write_clips(tmp_path / "clips", [0.4, 1.1, 0.7, 0.6, 0.5, 0.9])
    good = (path / "01.wav").read_bytes()
    for name in ("01.wav", "03.wav"):
        (path / name).write_bytes(b"no audio")
    out = tmp_path / "out.parquet"
    command = (models["speech"], "speech", path, out, "embed.chunk=2", *more)
    with pytest.raises(ValueError, match=r"2 of 6 samples of .* cannot be read \(01.wav: .*; 03.wav: "):
        run(*command)
    (path / "01.wav").write_bytes(good)
    (path / "03.wav").write_bytes(good)
    opened = []
    monkeypatch.setattr(script, "Rows", lambda dataset, first: opened.append(first) or Rows(dataset, first))
    run(*command)
    assert opened == [0, 2]  # the third part is as it was
    assert "6 samples of 32 numbers" in (printed := capsys.readouterr().out) and "left out" not in printed
    run(*command[:3], tmp_path / "fresh.parquet", *command[4:])
    assert out.read_bytes() == (tmp_path / "fresh.parquet").read_bytes() and not list(tmp_path.glob("*.parts"))


def test_parts_are_bound_to_rows_and_to_the_cells_of_a_table(models, tmp_path):
    """One file goes and another comes: rows move by one. A table's text changes, its number of lines does not."""
    path = write_clips(tmp_path / "clips", [0.4, 1.1, 0.7, 0.6])
    (path / "02.wav").write_bytes(b"no audio")
    settings = (models["speech"], "speech", path, tmp_path / "out.parquet", "embed.chunk=2")
    with pytest.raises(ValueError, match=r"1 of 4 samples"):
        run(*settings)
    (path / "00.wav").rename(path / "9.wav")
    with pytest.raises(ValueError, match=r"1 of 4 samples"):
        run(*settings)
    run(*settings, "data.max_bad_share=0.5")
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["01.wav", "03.wav", "9.wav"]

    lines = write_lines(tmp_path / "text", [5, 6, 7, 8])
    (table,) = (file for file in Path(lines).rglob("*") if file.is_file()) if Path(lines).is_dir() else [Path(lines)]
    rows = table.read_text().splitlines()
    command = (models["text"], "text", lines, tmp_path / "text.parquet", "embed.chunk=2")
    assert tiny.wait(tiny.start(run_until_second_part, *command)) == [-signal.SIGKILL]
    table.write_text("\n".join([rows[1], rows[0], *rows[2:]]) + "\n")
    run(*command)
    run(*command[:3], tmp_path / "fresh.parquet", *command[4:])
    assert (tmp_path / "text.parquet").read_bytes() == (tmp_path / "fresh.parquet").read_bytes()


def run_until_second_part(*command) -> None:
    """Dies by SIGKILL when the second part is about to be written."""
    add = Shards.add

    def dying(self, number, *rest):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, number, *rest)

    Shards.add = dying  # type: ignore[method-assign]
    run(*command)


def test_a_model_whose_weights_are_not_finite_gives_no_table(tmp_path):
    """Neither features nor scores of NaN are passed on."""
    run = tiny.finished("image")
    model = D2vModel.from_pretrained(run / "export")
    with torch.no_grad():
        model.trunk.blocks[0].mlp.fc2.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    shutil.copy(run / "export" / "preprocessor_config.json", tmp_path / "broken")
    command = ["image/demo", f"model={tmp_path / 'broken'}"]
    with pytest.raises(ValueError, match=r"its features are not finite: is the model damaged\?"):
        script.main([*command, f"out={tmp_path / 'f.parquet'}"])
    with pytest.raises(ValueError, match="features are not finite: the model is damaged, or its run diverged"):
        evaluate.main([*command, f"run.dir={tmp_path / 'run'}", "evaluate.raw=false", "evaluate.random_seeds=0"])
