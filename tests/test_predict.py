"""`d2v predict`: what a fine-tuned model says of data without labels is what its run said of its test split."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import test_detection
import test_finetune
import test_finetune_speech
import tiny
import torch
from PIL import Image

import d2v
from d2v.finetuning import predicting
from d2v.finetuning.finished import open_finished
from d2v.finetuning.predicting import Predictions
from d2v.models.task_models import D2vForCTC
from d2v.protocols import Rows
from scripts import finetune, predict

NOT_CHOSEN = ("data.validation_split=", "data.validation_share=0", "train.validate_every=0")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs() -> dict[str, Path]:
    """A finished run of each kind, with the data that it was tested on."""
    folder = tiny.scratch()
    for modality in ("image", "text"):
        test_finetune.main(modality, test_finetune.arguments(modality, folder / modality, *NOT_CHOSEN))
    for kind, more in (("letters", ["task.blank_bias=-4"]), ("classes", [])):
        finetune.main(test_finetune_speech.arguments(folder / kind, *NOT_CHOSEN, "train.metric=", *more, kind=kind))
    return {name: folder / name for name in ("image", "text", "letters", "classes")}


DATA = {
    "image": lambda: test_finetune.small("image"),
    "text": lambda: test_finetune.small("text"),
    "letters": test_finetune_speech.vowels,
    "classes": test_finetune_speech.vowels,
}


@pytest.mark.parametrize("kind", [*DATA])
def test_what_a_run_said_of_its_test_split_is_said_again(kind, runs, tmp_path, capsys):
    out = tmp_path / "out.csv"
    predict.main([str(runs[kind]), f"data.path={DATA[kind]()}", "data.split=test", f"out={out}"])
    expected, found = read(runs[kind] / "predictions_test.csv"), read(out)
    assert [*found[0]] == [*expected[0]] and sorted(row["id"] for row in found) == sorted(row["id"] for row in expected)
    by_id = {row["id"]: row for row in expected}
    for row in found:
        assert float(row.pop("probability", 0)) == pytest.approx(
            float(by_id[row["id"]].pop("probability", 0)), abs=1e-5
        )
        assert row == by_id[row["id"]]
    said, scores = capsys.readouterr().out, json.loads((runs[kind] / "results.json").read_text())["scores"]["test"]
    assert f"\n{len(found)} samples in {out}\n" in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"by the labels of {len(found)} of them: ")]
    for score in line.partition(": ")[2].split(", "):
        name, value = score.split()
        assert float(value) == pytest.approx(scores[name], abs=1e-4)
    assert sorted(place.name for place in tmp_path.iterdir()) == [".d2v-results", "out.csv"]


def test_probabilities_of_each_class(runs, tmp_path):
    out = d2v.predict(
        runs["image"], tmp_path / "each.csv", probabilities=True, data={"path": DATA["image"](), "split": "test"}
    )
    for row in read(out):
        shares = {name.removeprefix("p_"): float(value) for name, value in row.items() if name.startswith("p_")}
        assert len(shares) == 10 and sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(shares, key=shares.__getitem__) == row["prediction"]
        assert shares[row["prediction"]] == float(row["probability"])


def pictures(folder: Path, count: int, names: str = "{}.png") -> Path:
    for number in range(count):
        path = folder / names.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def test_a_plain_folder_with_a_bad_file_in_parts_that_a_kill_leaves(runs, tmp_path, monkeypatch, capsys):
    path = pictures(tmp_path / "new", 30)
    (path / "17b.png").write_bytes(b"no image")
    command = [str(runs["image"] / "export"), f"data.path={path}", f"out={tmp_path / 'out.csv'}"]
    predict.main([*command[:2], f"out={tmp_path / 'whole.csv'}"])
    assert "30 samples in " in (said := capsys.readouterr().out) and "; left out 1: 17b.png: " in said
    rows = read(tmp_path / "whole.csv")
    assert len(rows) == 30 and [*rows[0]] == ["id", "prediction", "probability"] and rows[0]["id"] == "0.png"

    config = predicting.EmbedConfig(chunk=8)
    monkeypatch.setattr(predicting, "EmbedConfig", lambda: config)
    add, added = Predictions.add, []

    def dying(self, number, *rest):
        if number == 2 and len(added) == 2:
            raise KeyboardInterrupt
        added.append(number)
        add(self, number, *rest)

    monkeypatch.setattr(Predictions, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        predict.main(command)
    assert not (tmp_path / "out.csv").exists() and (tmp_path / "out.csv.parts").is_dir()
    added.append(None)
    predict.main(command)
    assert added == [0, 1, None, 2, 3] and not (tmp_path / "out.csv.parts").exists()
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with pytest.raises(ValueError, match=r"out.csv exists; run.overwrite=true replaces it"):
        predict.main(command)
    predict.main([*command, "run.overwrite=true"])


def test_folders_that_are_no_classes_are_not_scored(runs, tmp_path, capsys):
    path = pictures(tmp_path / "new", 4, "camera{}/a.png")
    predict.main([str(runs["image"]), f"data.path={path}", f"out={tmp_path / 'out.csv'}"])
    said = capsys.readouterr().out
    assert (
        "not scored: the column 'label' (data.label) holds 'camera0', 'camera1', 'camera2'; the classes are 0, 1"
        in said
    )
    assert "by the labels" not in said and [*read(tmp_path / "out.csv")[0]] == ["id", "prediction", "probability"]


def test_some_labels_are_missing(runs, tmp_path, capsys):
    path = pictures(tmp_path / "new", 4)
    lines = ["file_name,label", "0.png,3", "1.png,", "2.png,4", "3.png,"]
    (path / "metadata.csv").write_text("\n".join(lines))
    predict.main([str(runs["image"]), f"data.path={path}", f"out={tmp_path / 'out.csv'}"])
    assert [row["label"] for row in read(tmp_path / "out.csv")] == ["3", "", "4", ""]
    assert "by the labels of 2 of them: accuracy " in capsys.readouterr().out


def test_a_long_recording_is_transcribed_in_windows(runs, tmp_path):
    waves = [soundfile.read(file)[0] for file in sorted((DATA["letters"]() / "test").glob("*.wav"))[:6]]
    path = tmp_path / "long"
    path.mkdir()
    soundfile.write(path / "a.wav", np.concatenate(waves), 8000)
    settings = [f"data.path={path}", "data.max_seconds=1"]
    model, config, reading, folder = open_finished(str(runs["letters"]), settings)
    assert isinstance(model, D2vForCTC)
    rows = Rows(reading.samples.open(config.data, "train"), 0)
    samples = reading.samples(config.data, config.frontend, split="train", folder=folder, rows=rows)
    (logits,) = predicting.answers(model.eval(), samples, bad := []).values()
    whole = torch.from_numpy(samples.wave(0))[None]
    with torch.no_grad():
        at_once = model(input_values=whole).logits[0]
    assert not bad and samples.cut.all() and logits.shape == tuple(at_once.shape)
    pieces = []  # the same, window by window
    with torch.no_grad():
        for view, counted in samples.windows(0, predicting.OVERLAP, 1):
            pieces.append(model(view).logits[counted].numpy())
    assert len(pieces) > 3 and np.abs(np.concatenate(pieces) - logits).max() < 1e-5
    predict.main([str(runs["letters"]), *settings, f"out={tmp_path / 'out.csv'}"])
    (row,) = read(tmp_path / "out.csv")
    assert row == {
        "id": "a.wav",
        "prediction": reading.says(model.config, config.data, False)(samples, 0, logits)[0]["prediction"],
    }


def test_boxes(tmp_path, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    data = tmp_path / "data"
    data.mkdir()
    lines = ["file,split,label,xmin,ymin,xmax,ymax"]
    for number, split in enumerate(["train"] * 8 + ["test"] * 3):
        pixels = np.zeros((24, 32, 3), dtype=np.uint8)
        pixels[4:14, 6 : 16 + number] = 200
        Image.fromarray(pixels).save(data / f"{number}.png")
        lines.append(f"{number}.png,{split},thing,6,4,{16 + number},14")
    (data / "boxes.csv").write_text("\n".join(lines))
    command = test_detection.arguments(data, tmp_path / "run", *NOT_CHOSEN, "data.test_split=test")
    finetune.main(command)
    new = tmp_path / "new"
    new.mkdir()
    for number in (8, 9, 10):
        shutil.copy(data / f"{number}.png", new)
    predict.main([str(tmp_path / "run"), f"data.path={new}", f"out={tmp_path / 'out.csv'}"])
    expected = sorted(read(tmp_path / "run" / "predictions_test.csv"), key=lambda row: (row["id"], row["score"]))
    found = sorted(read(tmp_path / "out.csv"), key=lambda row: (row["id"], row["score"]))
    assert expected and found == expected
    with pytest.raises(ValueError, match=r"probabilities=true asks for those of classes, and this model finds boxes"):
        predict.main([str(tmp_path / "run"), f"data.path={new}", f"out={tmp_path / 'p.csv'}", "probabilities=true"])


def test_numbers(tmp_path, capsys):
    path = pictures(tmp_path / "data", 24)
    lines = ["file_name,split,label", *(f"{n}.png,{'test' if n > 19 else 'train'},{100 + n}" for n in range(24))]
    (path / "metadata.csv").write_text("\n".join(lines))
    more = [
        f"data.path={path}",
        "data.label=label",
        "data.regression=true",
        "data.label_smoothing=0",
        f"run.dir={tmp_path / 'run'}",
    ]
    test_finetune.main("image", [*test_finetune.arguments("image", tmp_path / "run", *NOT_CHOSEN), *more])
    predict.main([str(tmp_path / "run"), f"data.path={path}", "data.split=test", f"out={tmp_path / 'out.csv'}"])
    found = {row["id"]: row for row in read(tmp_path / "out.csv")}
    for row in read(tmp_path / "run" / "predictions_test.csv"):
        assert float(found[row["id"]]["prediction"]) == pytest.approx(float(row["prediction"]), abs=1e-4)
        assert float(found[row["id"]]["label"]) == float(row["label"])
    assert "by the labels of 4 of them: pearson " in capsys.readouterr().out


REFUSED = {
    ("data.path={new}", "out=a.parquet"): "out=a.parquet must end in .csv",
    ("data.path={new}",): "usage: d2v predict MODEL data.path=FOLDER out=FILE.csv",
    ("out={tmp}/a.csv",): "data.path=FOLDER is missing: what is to be predicted for",
    (
        "data.path={new}",
        "out={tmp}/a.csv",
        "data.mixup=0.5",
    ): "data.mixup has no effect on predictions: they read data.path, ",
    ("data.path={new}", "out={tmp}/a.csv", "train.steps=1"): "train.steps has no effect on predictions",
    ("data.path={new}", "out={tmp}/a.csv", "data.spilt=test"): "data.spilt",
    ("data.path={new}", "out={tmp}/a.csv", "probabilities=yes"): "probabilities=yes must be true or false",
    ("data.path={tmp}/none/", "out={tmp}/a.csv"): "none",
    ("data.path={new}", "data.split=test", "out={tmp}/a.csv"): "test",
}


@pytest.mark.parametrize("given", [*REFUSED])
def test_what_is_refused(given, runs, tmp_path):
    new = pictures(tmp_path / "new", 2)
    with pytest.raises(ValueError, match=REFUSED[given]):
        predict.main([str(runs["image"]), *(one.format(new=new, tmp=tmp_path) for one in given)])
    assert not list(tmp_path.glob("a.csv*"))


def test_what_is_no_finished_run(runs, tmp_path):
    new = pictures(tmp_path / "new", 2)
    for model in (tmp_path / "none", new, test_finetune_speech.export()):
        with pytest.raises(ValueError, match=r"is no model of `d2v finetune`: there is no .*finetuning.yaml"):
            predict.main([str(model), f"data.path={new}", f"out={tmp_path / 'a.csv'}"])
    with pytest.raises(ValueError, match=r"this model writes letters: leave it out"):
        predict.main([str(runs["letters"]), f"data.path={new}", f"out={tmp_path / 'a.csv'}", "probabilities=true"])
