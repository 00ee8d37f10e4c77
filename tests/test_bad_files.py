"""One bad file never stops a run, anywhere: skipped, counted, named; too many are an error with names.

Headers alone are read before (data.check_files=false), as in every recipe of full size.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from PIL import Image

from d2v.evaluation.features import pooled_features, readable_features
from d2v.modalities import image
from d2v.reading import Limit, Reader
from d2v.types import Features
from scripts import data as data_script
from scripts import embed, evaluate, finetune, pretrain

ROOT = tiny.ROOT
BAD = {"image": {"a/00.jpg", "b/01.npy"}, "speech": {"a/00.wav", "b/01.flac"}}
FEW = ("train.steps=6", "run.save_every=6", "run.health_every=3", "run.health_samples=100", "evaluate.group=''")
MEASURED = ("evaluate.train_split=train", "evaluate.test_split=''", "evaluate.probe=false", "evaluate.random_seeds=1")


def write(modality: str, folder: Path) -> Path:
    """Forty files in two classes, of which two have good headers and bad contents."""
    for number in range(40):
        draw = np.random.default_rng(number)
        name = folder / "ab"[number % 2] / f"{number:02}"
        name.parent.mkdir(parents=True, exist_ok=True)
        if modality == "image":
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"{name}.jpg")
        else:
            soundfile.write(f"{name}.wav", 0.1 * draw.normal(size=8000 + 100 * number).clip(-4, 4), 8000)
    if modality == "image":
        whole = (folder / "a/00.jpg").read_bytes()
        (folder / "a/00.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / "b/01.jpg").unlink()
        np.save(folder / "b/01.npy", np.full((40, 40), np.nan, dtype=np.float32))
    else:
        soundfile.write(folder / "a/00.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
        wave, rate = soundfile.read(folder / "b/01.wav")
        (folder / "b/01.wav").unlink()
        soundfile.write(folder / "b/01.flac", wave, rate)
        whole = (folder / "b/01.flac").read_bytes()
        (folder / "b/01.flac").write_bytes(whole[: len(whole) // 2])
    return folder


def named_in(folder: Path) -> set[str]:
    lines = (folder / "bad_samples.jsonl").read_text().splitlines()
    assert all(json.loads(line)["reason"] for line in lines)
    return {json.loads(line)["sample"] for line in lines}


def pretrained(modality: str, data: Path, run: Path, *more: str) -> list[str]:
    return tiny.arguments(modality, run, *FEW, f"data.path={data}", "data.check_files=false", *more)


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_a_run_and_all_that_is_done_with_its_model(modality, tmp_path, capsys):
    data, run = write(modality, tmp_path / "data"), tmp_path / "run"
    command = pretrained(modality, data, run, f"run.probe={{path: {data}, every: 3}}")
    pretrain.main(command)
    assert named_in(run) == BAD[modality]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("student_knn" in record for record in records) >= 2
    assert sum("probe_teacher_knn" in record for record in records) >= 2
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert "are bad" not in capsys.readouterr().out

    model, config = f"model={run / 'export'}", command[0]
    settings = [f"data.path={data}", "data.check_files=false", "evaluate.group=''"]
    embed.main([config, model, *settings, f"out={tmp_path / 'features.npy'}"])
    printed = capsys.readouterr().out
    assert "38 samples of" in printed and "left out 2" in printed and all(name in printed for name in BAD[modality])
    assert set(json.loads((tmp_path / "features.ids.json").read_text())).isdisjoint(BAD[modality])

    evaluate.main([config, model, *settings, *MEASURED, f"run.dir={tmp_path / 'evaluated'}", "evaluate.k=[5]"])
    printed = capsys.readouterr().out
    assert "left out, cannot be read: 2: " in printed and all(name in printed for name in BAD[modality])
    (result,) = (tmp_path / "evaluated" / "evaluation").glob("*.json")
    assert json.loads(result.read_text())["train_samples"] == 38


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_fine_tuning_validates_and_scores_what_can_be_read(modality, tmp_path):
    data, run, model = write(modality, tmp_path / "data"), tmp_path / "run", tiny.finished(modality) / "export"
    command = [str(ROOT / "configs" / modality / "finetune_tiny.yaml"), f"model={model}", f"run.dir={run}"]
    command += [f"data.path={data}", "data.split=train", "data.validation_split=train", "data.validation_share=0"]
    command += [
        "data.test_split=''",
        "data.label=label",
        "data.check_files=false",
        "train.steps=4",
        "train.batch_size=4",
    ]
    command += ["train.warmup_steps=1", "train.validate_every=2", "run.save_every=4", "run.log_every=1"]
    command += {
        "image": [f"model.frontends.image.{part}" for part in ("image_size=8", "patch_size=2", "channels=1")]
        + ["data.mean=[0.3]", "data.std=[0.38]"],
        "speech": ["data.group=''"],
    }[modality]
    scores = finetune.main(command)
    assert named_in(run) == BAD[modality]
    with (run / "predictions_validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 38 and not {row["id"] for row in rows} & BAD[modality]
    assert all(row["label"] == row["id"][0] for row in rows)
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert scores["validation"]["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("modality", ["image", "speech"])
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_are_an_error_with_names(modality, workers, tmp_path):
    data = write(modality, tmp_path / "data")
    command = pretrained(modality, data, tmp_path / "run", "data.max_bad_share=0.03", f"run.workers={workers}")
    with pytest.raises(ValueError, match=r"2 of 40 samples cannot be read, data.max_bad_share is 3.0%") as caught:
        pretrain.main(command)
    assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in BAD[modality])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_in_training_alone(workers, tmp_path):
    """The check of health reads the first and the last, of which one is bad: no more than the share of all."""
    data = write("image", tmp_path / "data")
    more = ("data.max_bad_share=0.03", "run.health_samples=3", "train.steps=20", f"run.workers={workers}")
    with pytest.raises(ValueError, match=r"2 of 40 samples cannot be read") as caught:
        pretrain.main(pretrained("image", data, tmp_path / "run", *more))
    assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in BAD["image"])


def test_the_report_of_data_names_all_before_it_fails(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number:02}.png")
        (folder / f"bad{number:02}.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"50.0% of the image samples of .* are bad, data.max_bad_share is 10.0%"):
        data_script.main(["image/data2vec_tiny", f"data.path={folder}"])
    said = capsys.readouterr().out
    assert "image: 12 of 24 samples usable" in said and said.count(" (UnidentifiedImageError") == 12


def test_a_pipe_is_not_waited_for(tmp_path):
    data = write("image", tmp_path / "data")
    (data / "a/02.jpg").unlink()
    os.mkfifo(data / "a/02.jpg")
    samples = samples_of(data)
    if samples.report.unreadable:  # where files are listed, unless such are left out there
        assert samples.report.unreadable == [("a/02.jpg", "OSError: no ordinary file")]
    assert "a/02.jpg" not in samples.ids


def samples_of(data: Path) -> image.Samples:
    settings = image.DataConfig(path=str(data), check_files=False, min_block=4)
    return image.Samples(settings, image.FrontendConfig(image_size=16, patch_size=4), split="train", folder=Path())


class Encoder(torch.nn.Module):
    """The mean of pixels."""

    def embed(self, view):
        return view.inputs["pixel_values"].mean(dim=(2, 3))[:, None]

    def forward(self, view, tokens=None, layers="none"):
        return Features(self.embed(view), [])


@pytest.mark.slow
def test_features_of_the_others_are_as_they_were(tmp_path):
    data = write("image", tmp_path / "data")
    samples = samples_of(data)
    bad = [samples.ids.index(name) for name in sorted(BAD["image"])]
    good = np.setdiff1d(np.arange(40), bad)
    alone = pooled_features(Encoder(), samples, 8, indices=good, layer="last")["last"]
    heard: list[str] = []
    reader = Reader(0.1, lambda name, why: heard.append(name))
    for _ in range(2):
        places, features = readable_features(reader, Encoder(), samples, 8, indices=np.arange(40), layer="last")
        assert np.array_equal(places, good) and np.array_equal(features["last"], alone)
    assert heard == sorted(BAD["image"])  # once
    with pytest.raises(
        ValueError, match=r"1 of 40 samples cannot be read, data.max_bad_share is 0.0%: a/00.jpg: OSErr"
    ):
        pooled_features(Encoder(), samples, 8, layer="last")


def test_a_small_measurement_may_meet_a_bad_file_by_chance(tmp_path):
    samples = samples_of(write("image", tmp_path / "data"))
    place = samples.ids.index("a/00.jpg")
    around = np.array([place, place + 1])
    places, _ = readable_features(Reader(0.03), Encoder(), samples, 8, indices=around, layer="last")
    assert places.tolist() == [1]
    with pytest.raises(ValueError, match=r"none of 1 samples can be read: a/00.jpg: OSError"):
        readable_features(Reader(0.03), Encoder(), samples, 8, indices=around[:1], layer="last")


def test_a_limit_counts_each_sample_once():
    heard: list[str] = []
    limit = Limit(lambda name, why: heard.append(name), 0.1, 20)
    for name in ("a", "a", "b", "a"):
        limit(name, "gone")
    with pytest.raises(
        ValueError, match=r"3 of 20 samples cannot be read, data.max_bad_share is 10.0%: a: gone; b: gone; c: g"
    ):
        limit("c", "gone")
    assert heard == ["a", "a", "b", "a", "c"]
