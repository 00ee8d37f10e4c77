"""`d2v predict`: what a fine-tuned model says of data without labels is what its run said of its test split."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
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
    assert f"\nsamples in {out}: {len(found)}\n" in said
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
    assert "whole.csv: 30; left out 1: 17b.png: " in capsys.readouterr().out
    rows = read(tmp_path / "whole.csv")
    assert len(rows) == 30 and [*rows[0]] == ["id", "prediction", "probability"] and rows[0]["id"] == "0.png"

    monkeypatch.setattr(predicting, "CHUNK", 8)
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
    assert "not scored: the column 'label' holds 'camera0', 'camera1', 'camera2', ...; the classes are 0, 1" in said
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
    ((_, logits),) = predicting.answers(model.eval(), samples, bad := [])
    whole = torch.from_numpy(samples.wave(0))[None]
    with torch.no_grad():
        at_once = model(input_values=whole).logits[0]
    assert not bad and samples.cut.all() and logits.shape == tuple(at_once.shape)
    pieces = []  # the same, window by window
    with torch.no_grad():
        for view, counted in samples.windows(0, predicting.OVERLAP, 1):
            pieces.append(model(view).logits[counted].numpy())
    # In the middle of a window a token hears what it does in the whole: positions and neighbours are the same.
    near = np.abs(logits - at_once.numpy()).max(axis=1)
    assert np.median(near) < 0.5 * np.abs(at_once.numpy()).mean()
    assert len(pieces) > 3 and np.abs(np.concatenate(pieces) - logits).max() < 1e-5
    predict.main([str(runs["letters"]), *settings, f"out={tmp_path / 'out.csv'}"])
    (row,) = read(tmp_path / "out.csv")
    assert row == {
        "id": "a.wav",
        "prediction": reading.says(model.config, config.data, False)(samples, 0, logits)[0]["prediction"],
    }


@pytest.fixture(scope="module")
def boxed() -> tuple[Path, Path]:
    """A finished run of boxes, and the folder that it learnt from."""
    pytest.importorskip("faster_coco_eval")
    folder = tiny.scratch()
    data = folder / "data"
    data.mkdir()
    lines = ["file,split,label,xmin,ymin,xmax,ymax"]
    for number, split in enumerate(["train"] * 8 + ["test"] * 3):
        pixels = np.zeros((24, 32, 3), dtype=np.uint8)
        pixels[4:14, 6 : 16 + number] = 200
        Image.fromarray(pixels).save(data / f"{number}.png")
        lines.append(f"{number}.png,{split},thing,6,4,{16 + number},14")
        lines.append(f"{number}.png,{split},part,6,4,10,10")
    (data / "boxes.csv").write_text("\n".join(lines))
    finetune.main(test_detection.arguments(data, folder / "run", *NOT_CHOSEN, "data.test_split=test"))
    return folder / "run", data


def same_boxes(one: Path, other: Path) -> bool:
    found = [sorted(read(path), key=lambda row: [*row.values()]) for path in (one, other)]
    return bool(found[0]) and found[0] == found[1]


@pytest.mark.parametrize("data", ["", "boxes.csv"])
def test_boxes_of_a_split_are_scored_as_the_run_did(data, boxed, tmp_path, capsys):
    run, path = boxed
    predict.main([str(run), f"data.path={path / data}", "data.split=test", f"out={tmp_path / 'out.csv'}"])
    assert same_boxes(run / "predictions_test.csv", tmp_path / "out.csv")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("by the labels of 3 of them: ")]
    scores = json.loads((run / "results.json").read_text())["scores"]["test"]
    for score in line.partition(": ")[2].split(", "):
        name, value = score.split()
        assert float(value) == pytest.approx(scores[name], abs=2e-3)


def test_boxes_of_images_without_annotations(boxed, tmp_path, capsys):
    run, path = boxed
    new = tmp_path / "new"
    new.mkdir()
    for number in (8, 9, 10):
        shutil.copy(path / f"{number}.png", new)
    predict.main([str(run), f"data.path={new}", f"out={tmp_path / 'out.csv'}"])
    assert same_boxes(run / "predictions_test.csv", tmp_path / "out.csv")
    assert "by the labels" not in capsys.readouterr().out
    predict.main([str(run), f"data.path={path}", f"out={tmp_path / 'all.csv'}"])
    assert {row["id"] for row in read(tmp_path / "all.csv")} == {f"{number}.png" for number in range(11)}
    with pytest.raises(ValueError, match=r"probabilities=true asks for those of classes, and this model finds boxes"):
        predict.main([str(run), f"data.path={new}", f"out={tmp_path / 'p.csv'}", "probabilities=true"])


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


def test_all_splits_are_read_unless_one_is_asked_for(runs, tmp_path, capsys):
    one = DATA["text"]() / "test.parquet"
    predict.main([str(runs["text"]), f"data.path={one}", f"out={tmp_path / 'test.csv'}"])
    assert len(read(tmp_path / "test.csv")) == 20
    predict.main([str(runs["text"]), f"data.path={one.parent}", f"out={tmp_path / 'all.csv'}"])
    assert "splits: train and test is read" in capsys.readouterr().out
    assert [row["id"] for row in read(tmp_path / "all.csv")] == [
        *(f"train:{n}" for n in range(80)),
        *(f"test:{n}" for n in range(20)),
    ]
    predict.main([str(runs["text"]), "data.path=demo", f"out={tmp_path / 'demo.csv'}", "data.max_bad_share=0.5"])
    assert {row["id"].partition(":")[0] for row in read(tmp_path / "demo.csv")} == {"train", "test"}


def test_columns_of_the_data_and_parquet(runs, tmp_path):
    (tmp_path / "new.csv").write_text("key,words,label\nA1,how to format,types\nA2,a debugger,\nA3,strings,types\n")
    command = [str(runs["text"]), f"data.path={tmp_path / 'new.csv'}", "columns=key,words", "data.text=words"]
    predict.main([*command, f"out={tmp_path / 'out.parquet'}", "probabilities=true"])
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["key"] for row in table] == ["A1", "A2", "A3"] and table[1]["words"] == "a debugger"
    assert [row["label"] for row in table] == ["types", None, "types"]
    assert all(sum(value for name, value in row.items() if name.startswith("p_")) > 0.999 for row in table)
    predict.main([*command, f"out={tmp_path / 'out.csv'}"])
    assert [row["key"] for row in read(tmp_path / "out.csv")] == ["A1", "A2", "A3"]
    path = {"path": tmp_path / "new.csv", "text": "words"}
    d2v.predict(runs["text"], tmp_path / "called.csv", columns=["key"], data=path)
    assert [*read(tmp_path / "called.csv")[0]] == ["id", "key", "label", "prediction", "probability"]
    for wrong in ("kee", "id", "label"):
        with pytest.raises(ValueError, match=f"columns={wrong}"):
            predict.main([*command[:2], "data.text=words", f"columns={wrong}", f"out={tmp_path / 'no.csv'}"])


def test_the_label_is_never_read_for_the_text(runs, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("words,label\nhow to format,types\na debugger,debugger\n")
    predict.main([str(runs["text"]), f"data.path={tmp_path / 'new.csv'}", f"out={tmp_path / 'out.csv'}"])
    assert "texts: the column 'words' (data.text)" in capsys.readouterr().out
    (tmp_path / "bare.csv").write_text("n,label\n1,types\n2,debugger\n")
    with pytest.raises(ValueError, match="no column holds text"):
        predict.main([str(runs["text"]), f"data.path={tmp_path / 'bare.csv'}", f"out={tmp_path / 'no.csv'}"])


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (["3", "4.0", "unsorted", ""], "by the labels of 2 of them"),
        (["3", "04", "7", "9"], "by the labels of 4 of them"),
    ],
)
def test_labels_in_another_form_and_labels_that_are_none(written, found, runs, tmp_path, capsys):
    path = pictures(tmp_path / "new", 4)
    (path / "metadata.csv").write_text("\n".join(["file_name,label", *(f"{n}.png,{w}" for n, w in enumerate(written))]))
    predict.main([str(runs["image"]), f"data.path={path}", f"out={tmp_path / 'out.csv'}"])
    said = capsys.readouterr().out
    assert found in said and ("1 labels are no classes of the model and not scored: 'unsorted'" in said) == (
        "unsorted" in written
    )
    assert [row["label"] for row in read(tmp_path / "out.csv")] == written


def test_more_and_fewer_files_after_a_stop(runs, tmp_path, monkeypatch):
    path = pictures(tmp_path / "new", 20)
    monkeypatch.setattr(predicting, "CHUNK", 8)
    command = [str(runs["image"]), f"data.path={path}", f"out={tmp_path / 'out.csv'}"]
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(Predictions, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict.main(command)
    for number in range(11, 20):
        (path / f"{number}.png").unlink()
    pictures(path, 1, "another{}.png")
    predict.main(command)
    assert {row["id"] for row in read(tmp_path / "out.csv")} == {*(f"{n}.png" for n in range(11)), "another0.png"}


def test_rows_of_a_later_split_are_counted_anew_after_a_stop(runs, tmp_path, monkeypatch):
    path = tmp_path / "new"
    path.mkdir()
    rows = [f"k{n},how to format {n}" for n in range(9)]
    (path / "train.csv").write_text("\n".join(["key,text", *rows[:6]]))
    (path / "test.csv").write_text("\n".join(["key,text", *rows[6:]]))
    command = [str(runs["text"]), f"data.path={path}", f"out={tmp_path / 'out.csv'}", "columns=key"]
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(Predictions, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict.main(command)
    (path / "train.csv").write_text("\n".join(["key,text", *rows[:4]]))
    predict.main(command)
    found = [(row["id"], row["key"]) for row in read(tmp_path / "out.csv")]
    assert found == [*((f"train:{n}", f"k{n}") for n in range(4)), *((f"test:{n}", f"k{6 + n}") for n in range(3))]


REFUSED = {
    ("data.path={new}", "out=a.json"): "out=a.json must end in .csv or .parquet",
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
    ("data.path={tmp}/none/", "out={tmp}/a.csv"): "does not exist",
    ("data.path={new}", "data.split=test", "out={tmp}/a.csv"): "has no splits: all of it is 'train'",
    ("data={{path: {new}}}", "out={tmp}/a.csv"): "data={...} is given whole: write data.path=FOLDER",
    ("data.path={new}", "data.label=nothing", "out={tmp}/a.csv"): "data.label is 'nothing'; the columns of data.path ",
}


@pytest.mark.parametrize("given", [*REFUSED])
def test_what_is_refused(given, runs, tmp_path):
    new = pictures(tmp_path / "new", 2)
    with pytest.raises(ValueError, match=REFUSED[given]):
        predict.main([str(runs["image"]), *(one.format(new=new, tmp=tmp_path) for one in given)])
    assert not list(tmp_path.glob("a.csv*"))


def test_what_is_no_finished_run(runs, tmp_path):
    new = pictures(tmp_path / "new", 2)
    shutil.copytree(runs["image"], tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "export")
    with pytest.raises(ValueError, match="that run has not ended, and has no export/ yet: the command that began it"):
        predict.main([str(tmp_path / "begun"), f"data.path={new}", f"out={tmp_path / 'a.csv'}"])
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty.txt has nothing that can be read"):
        predict.main([str(runs["text"]), f"data.path={tmp_path / 'empty.txt'}", f"out={tmp_path / 'a.csv'}"])
    for model in (tmp_path / "none", new, test_finetune_speech.export()):
        with pytest.raises(
            ValueError, match=r"is no model of `d2v finetune` \(.*finetuning.yaml is not there\): give the folder"
        ):
            predict.main([str(model), f"data.path={new}", f"out={tmp_path / 'a.csv'}"])
    with pytest.raises(ValueError, match=r"this model writes letters: leave it out"):
        predict.main([str(runs["letters"]), f"data.path={new}", f"out={tmp_path / 'a.csv'}", "probabilities=true"])
