"""Fine-tuning as a user starts it.

What a run leaves, resuming to the bit, freezing, averaging, early stopping, and what is refused.
"""

import csv
import functools
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny import ROOT
from transformers import AutoModelForImageClassification, AutoTokenizer, pipeline

from d2v.finetuning.config import load
from d2v.finetuning.model import adopt, build_model
from d2v.finetuning.objective import Supervised
from d2v.finetuning.scores import among_equals
from d2v.modalities.image import labelled
from d2v.modalities.image.samples import demo as image_demo
from d2v.modalities.text.corpus import demo as text_demo
from d2v.models.task_models import D2vForImageClassification, D2vForSequenceClassification
from d2v.training.loop import Loop
from scripts import finetune_image

CONFIGS = sorted((ROOT / "configs").glob("*/finetune_*.yaml"))
TRUNK = ("model.trunk.dim=32", "model.trunk.depth=2", "model.trunk.num_heads=2", "model.trunk.mlp_dim=64")
SHORT = (
    "train.steps=20",
    "train.warmup_steps=2",
    "train.batch_size=4",
    "train.validate_every=10",
    "run.log_every=1",
    "run.save_every=10",
)
DEMO = {
    "image": (
        *(f"model.frontends.image.{setting}" for setting in ("image_size=8", "patch_size=2", "channels=1")),
        *(f"data.{setting}" for setting in ("split=train", "test_split=test", "mean=[0.3]", "std=[0.38]", "flip=0")),
    ),
    "text": (
        "data.vocab_size=400",
        "data.block_size=24",
        "model.frontends.text.max_positions=128",
        "data.test_split=test",
    ),
}


@functools.cache
def small(modality: str) -> Path:
    """A folder with a few samples of the modality's demo, as tables."""
    folder = tiny.scratch() / f"small_{modality}"
    folder.mkdir()
    demo = {"image": image_demo, "text": text_demo}[modality]
    for split, count in (("train", 80), ("test", 20)):
        rows = demo(split).shuffle(seed=0)
        rows.select(range(count)).to_parquet(folder / f"{split}.parquet")
    return folder


def arguments(modality: str, folder, *more: str) -> list[str]:
    """The command line of a run of 20 steps on a little of the modality's demo."""
    config = str(ROOT / "configs" / modality / "finetune_tiny.yaml")
    return [config, *TRUNK, *SHORT, *DEMO[modality], f"data.path={small(modality)}", f"run.dir={folder}", *more]


def main(modality: str, argv: list[str]) -> dict:
    return importlib.import_module(f"scripts.finetune_{modality}").main(argv)


def predictions(folder, split: str) -> list[dict]:
    with (folder / f"predictions_{split}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.pictures
@pytest.mark.parametrize("modality", tiny.first(DEMO))
def test_a_run_from_an_export_leaves_a_model_scores_predictions_and_pictures(modality, tmp_path):
    source, folder = tiny.finished(modality) / "export", tmp_path / "run"
    scores = main(modality, arguments(modality, folder, f"model={source}"))
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 20 and results["scores"] == scores and set(scores) == {"validation", "test"}
    kind = D2vForImageClassification if modality == "image" else D2vForSequenceClassification
    model = kind.from_pretrained(folder / "export")
    names = model.config.id2label
    assert len(names) == 10 and model.config.label2id == {name: number for number, name in names.items()}
    assert model.encoder.trunk.config.depth == 2 and model.config.problem_type == "single_label_classification"
    rows = predictions(folder, "test")
    correct = np.mean([row["label"] == row["prediction"] for row in rows])
    assert correct == pytest.approx(scores["test"]["accuracy"]) and {row["label"] for row in rows} <= set(
        names.values()
    )
    for picture in ("confusion_test.png", "confusion_validation.png", "curves.png"):
        pixels = np.asarray(Image.open(folder / picture).convert("L"))
        assert min(pixels.shape) > 200 and pixels.std() > 5
    if modality == "text":
        (answer,) = pipeline("text-classification", model=str(folder / "export"), device="cpu")("def f(x): return x")
        assert answer["label"] in names.values() and 0 < answer["score"] < 1
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "validation_accuracy" in record] == [10, 20]
    best = max(record["validation_accuracy"] for record in records if "validation_accuracy" in record)
    assert scores["validation"]["accuracy"] == pytest.approx(best)
    assert not list(folder.glob(".*.tmp")) and (folder / "export" / "finetuning.yaml").is_file()


def test_the_weights_of_the_export_are_the_start_and_the_head_is_new(tmp_path):
    source = tiny.finished("image") / "export"
    config, _ = load([*arguments("image", tmp_path, "train.seed=3"), f"model={source}"], "image")
    said: list[str] = []
    encoder = adopt(config, tmp_path, said.append)
    model = build_model(config, D2vForImageClassification, {"num_labels": 4}, encoder)
    expected = tiny.load(source / "model.safetensors")
    assert expected.keys() >= set(model.encoder.state_dict())
    tiny.assert_same(
        model.encoder.state_dict(),
        {name: value for name, value in expected.items() if name in model.encoder.state_dict()},
    )
    assert (
        config.model.trunk.dim == encoder.config.trunk["dim"]
        and config.frontend.mask_token
        and config.model.trunk.drop_path == 0.1
    )
    assert len(said) == 1 and "frontends.image.mask_token=True instead of False" in said[0]


@pytest.mark.parametrize("modality", tiny.first(DEMO))
def test_an_interrupted_run_ends_as_one_that_was_not(modality, tmp_path, monkeypatch):
    """Student, average, optimizer moments, best score and step, curves and predictions, to the bit."""
    more = (
        "train.ema_decay=0.9",
        "train.freeze_steps=5",
        "model.trunk.dropout=0.1",
        "train.validate_every=5",
        "train.patience=10",
    )
    more += ("data.mixup=0.8", "data.random_erase=0.5") if modality == "image" else ()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(modality, arguments(modality, whole, *more))
    step = Loop._step

    def dying(self, batches):
        if self.progress.step == 16:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        main(modality, arguments(modality, killed, *more))
    assert not (killed / "results.json").exists()
    monkeypatch.setattr(Loop, "_step", step)
    main(modality, arguments(modality, killed, *more))
    for number in (10, 20):
        tiny.assert_same(tiny.checkpoint_tensors(killed, number), tiny.checkpoint_tensors(whole, number))
    assert {"best_score", "best_among_equals", "best_step"} <= tiny.load(
        killed / "checkpoints" / "00000020" / "model.safetensors"
    ).keys()
    assert tiny.losses(killed) == tiny.losses(whole)
    assert predictions(killed, "test") == predictions(whole, "test")
    assert json.loads((killed / "results.json").read_text()) == json.loads((whole / "results.json").read_text())
    tiny.assert_same(
        tiny.load(killed / "export" / "model.safetensors"), tiny.load(whole / "export" / "model.safetensors")
    )


def objective_of(folder, *more: str) -> tuple[Supervised, object]:
    config, _ = load(arguments("image", folder, *more), "image")
    torch.manual_seed(0)
    data = labelled.open_data(config, folder, lambda *_: None, lambda _: None)
    return Supervised(build_model(config, D2vForImageClassification, data.head, None), config.train), data


def trained_names(objective: Supervised) -> set[str]:
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def test_frozen_parts_stay_and_the_rest_moves(tmp_path):
    source = tiny.finished("image") / "export"
    start = tiny.load(source / "model.safetensors")
    for more, moves in (
        (("train.layers=frozen", "train.layer_decay=1"), lambda name: False),
        (
            ("train.freeze=[frontends.image,trunk.blocks.0]",),
            lambda name: name.startswith("trunk") and "blocks.0" not in name,
        ),
        (("train.freeze_steps=20",), lambda name: False),
        (("train.freeze_steps=19",), lambda name: "mask_token" not in name),
    ):
        folder = tmp_path / more[0].replace("/", "")
        main(
            "image",
            arguments("image", folder, f"model={source}", "data.validation_share=0", "train.validate_every=0", *more),
        )
        end = tiny.load(folder / "export" / "model.safetensors")
        moved = {name for name, value in start.items() if not torch.equal(end[f"encoder.{name}"], value)}
        assert moved == {name for name in start if moves(name)}, more
        assert end["head.out.bias"].any()


def test_a_probe_reads_features_of_evaluation_mode(tmp_path):
    objective, data = objective_of(
        tmp_path, "train.layers=frozen", "train.layer_decay=1", "model.trunk.dropout=0.5", "data.validation_share=0"
    )
    assert all(name.startswith("student.model.head.") for name in trained_names(objective))
    objective.train()
    assert objective.student["model"].head.training and not objective.student["model"].encoder.training
    views, _ = data.batches(0, 0, 1)
    assert torch.equal(objective(views).total, objective(views).total)


def test_the_loss_is_the_sum_over_samples_whatever_the_parts(tmp_path):
    objective, data = objective_of(
        tmp_path, "train.batch_size=6", "data.mixup=0.8", "data.cutmix=1.0", "model.trunk.drop_path=0"
    )
    whole = objective(data.batches(3, 0, 1)[0])
    parts = [objective(data.batches(3, part, 2)[0]) for part in range(2)]
    torch.testing.assert_close(whole.total, sum(part.total for part in parts))
    assert whole.count == 6 == sum(part.count for part in parts)
    (view,) = data.batches(3, 0, 1)[0]
    logits = objective.student["model"](view._replace(labels=None)).logits
    slow = -sum((row.log_softmax(0) * shares).sum() for row, shares in zip(logits, view.labels, strict=True))
    torch.testing.assert_close(whole.total, slow)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_average_of_the_weights_is_the_result_if_asked_for(decay, tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    step = Loop._step

    def watched(self, batches):
        if not seen:
            seen.append({name: value.clone() for name, value in self.objective.student["model"].state_dict().items()})
        step(self, batches)
        seen.append({name: value.clone() for name, value in self.objective.student["model"].state_dict().items()})

    monkeypatch.setattr(Loop, "_step", watched)
    more = (f"train.ema_decay={decay}", "train.steps=4", "data.validation_share=0", "train.validate_every=0")
    main("image", arguments("image", tmp_path / "run", *more))
    average = seen[0]
    for weights in seen[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    end = tiny.load(tmp_path / "run" / "export" / "model.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(end[name], value, rtol=1e-5, atol=1e-6)
    saved = tiny.load(tmp_path / "run" / "checkpoints" / "00000004" / "model.safetensors")
    assert any(name.startswith("teacher.") for name in saved) == (decay > 0)


def test_early_stopping_keeps_the_best_and_stops_after_patience(tmp_path, monkeypatch):
    found = iter([0.3, 0.5, 0.4, 0.5, 0.2, 0.9])
    score = lambda outputs, labels: {"accuracy": next(found), "loss": 1.0}  # noqa: E731
    monkeypatch.setattr("d2v.modalities.common.labels.classification", score)
    with pytest.raises(StopIteration):  # five are asked for in training, the sixth by the report, which then lacks one
        main("image", arguments("image", tmp_path / "run", "train.validate_every=2", "train.patience=3"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["validation_accuracy"] for record in records if "validation_accuracy" in record] == [
        0.3,
        0.5,
        0.4,
        0.5,
        0.2,
    ]
    assert [record["step"] for record in records if "loss" in record][-1] == 10  # its steps are in a line
    last = tiny.load(tmp_path / "run" / "checkpoints" / "00000010" / "model.safetensors")
    assert last["best_step"] == 4 and last["best_score"] == 0.5
    best = tiny.load(tmp_path / "run" / "export" / "model.safetensors")
    assert not torch.equal(best["head.out.weight"], last["student.model.head.out.weight"])


def test_of_models_of_one_score_the_one_with_the_lower_loss_is_kept(tmp_path, monkeypatch):
    """Small splits have few scores: the first model that has them all right is hardly trained."""
    found = iter([(0.5, 2.0), (1.0, 0.9), (1.0, 0.3), (1.0, 0.4), (0.9, 0.1), (1.0, 0.3)])
    score = lambda outputs, labels: dict(zip(("accuracy", "loss"), next(found), strict=True))  # noqa: E731
    monkeypatch.setattr("d2v.modalities.common.labels.classification", score)
    with pytest.raises(StopIteration):  # six are asked for in training, the next by the report
        main("image", arguments("image", tmp_path / "run", "train.validate_every=2", "train.steps=12"))
    last = tiny.load(tmp_path / "run" / "checkpoints" / "00000012" / "model.safetensors")
    assert last["best_step"] == 6 and last["best_score"] == 1 and last["best_among_equals"] == torch.tensor(0.3)


def test_what_chooses_among_equals():
    assert among_equals("accuracy", {"accuracy": 1.0, "loss": 0.5}) == 0.5
    assert among_equals("wer", {"wer": 1.0, "cer": 0.7}) == 0.7 and among_equals("cer", {"wer": 1.0, "cer": 0.7}) == 1
    assert among_equals("loss", {"accuracy": 1.0, "loss": 0.5}) == among_equals("ap50", {"ap50": 1.0, "ap": 0.5}) == 0


def test_regression_by_pearson_and_pairs_of_text(tmp_path):
    rows = [(f"def number {n} of {n % 7}", f"and {n % 5} more", (n % 7 + n % 5) / 10) for n in range(60)]
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:40]), ("validation", rows[40:50]), ("test", rows[50:])):
        with (tmp_path / "data" / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("one", "two", "score"), *part])
    more = (
        "data.text=one",
        "data.text_pair=two",
        "data.label=score",
        "data.regression=true",
        "data.validation_share=0",
    )
    more += ("data.validation_split=validation", "data.test_split=test", f"data.path={tmp_path / 'data'}")
    scores = main("text", arguments("text", tmp_path / "run", *more))
    assert set(scores["test"]) == {"pearson", "spearman", "loss"}
    assert [row["label"] for row in predictions(tmp_path / "run", "test")] == [str(row[2]) for row in rows[50:]]
    model = D2vForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    assert model.config.problem_type == "regression" and model.config.num_labels == 1
    assert model.config.id2label == {0: "score"} and model.config.label2id == {"score": 0}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    with torch.no_grad():
        value = model.eval()(**tokenizer(rows[50][0], rows[50][1], return_tensors="pt")).logits.item()
    assert value == pytest.approx(float(predictions(tmp_path / "run", "test")[0]["prediction"]), abs=1e-4)


def test_every_mode_of_an_image_becomes_what_the_model_reads(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number, mode in enumerate(("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16")):
                name = f"{number}.tiff" if mode in ("CMYK", "I;16") else f"{number}.png"
                pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                image = (
                    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
                )
                image.save(tmp_path / "data" / split / label / name)
    more = (
        "model.frontends.image.channels=3",
        "data.mean=[0.5]",
        "data.std=[0.2]",
        f"data.path={tmp_path / 'data'}",
        "data.validation_share=0.2",
    )
    main(
        "image",
        arguments("image", tmp_path / "run", *more, "data.auto_augment=rand-m9-mstd0.5-inc1", "data.random_erase=0.25"),
    )
    assert len(predictions(tmp_path / "run", "test")) == 14
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "export")
    assert model.config.id2label == {0: "a", 1: "b"}


def test_nothing_is_overwritten_unless_asked_for(tmp_path, capsys):
    command = arguments("image", tmp_path / "run", "train.steps=4", "train.validate_every=2")
    scores = main("image", command)
    before = (tmp_path / "run" / "results.json").read_text()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("run/[pre]*") if file.suffix != ".yaml"}
    capsys.readouterr()
    assert main("image", command) == scores
    assert (
        "run holds this run, finished: nothing is changed, and its scores are those of then\nvalidation: "
        in capsys.readouterr().out
    )
    assert len(files) > 3 and {file: file.stat().st_mtime_ns for file in files} == files
    (tmp_path / "run" / "report.html").unlink()  # as if it had been killed before its end
    assert main("image", command) == scores
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(ValueError, match=r"holds a run of another config \(train.seed: 0 -> 1\)"):
        main("image", [*command, "train.seed=1"])
    main("image", [*command, "train.seed=1", "run.overwrite=true"])
    assert (tmp_path / "run" / "results.json").read_text() != before
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run of another config \(train.seed: 1 -> 0\)"):
        main("image", command)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no run's folder"):
        main("image", [*command, f"run.dir={mine}", "run.overwrite=true"])
    assert (mine / "thesis.txt").is_file()


def test_a_model_that_nothing_chose_is_exported_beside_a_file_of_the_users(tmp_path):
    run = tmp_path / "run"
    command = arguments("image", run, "train.steps=4", "train.validate_every=2")
    main("image", command)
    (run / "export" / "model.onnx").write_bytes(b"mine")
    unchosen = ("train.validate_every=0", "data.validation_share=0", "data.validation_split=''", "run.overwrite=true")
    main("image", [*command, *unchosen])
    assert (run / "export" / "model.safetensors").is_file()
    assert (run / "export" / "model.onnx").read_bytes() == b"mine"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of text with columns that cannot be learned, and one whose test split holds a label of its own."""
    folder = tmp_path_factory.mktemp("tables")
    for split, labels in (("train", ["yes", "no"]), ("test", ["yes", "maybe"])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = [("text", "answer", "number", "same", "share", "hole")]
            lines += [(f"a sentence of {n}", labels[n % 2], n, "x", n / 7, "yes" if n else "") for n in range(20)]
            csv.writer(file).writerows(lines)
    return folder


@pytest.mark.parametrize(
    ("modality", "more", "message"),
    [
        (
            "text",
            ("data.label=anser", "data.test_split=''"),
            r"data.label is 'anser': the data has no column 'anser'; its columns are text, answer",
        ),
        (
            "text",
            ("data.label=number", "data.test_split=''"),
            "data.label 'number' has another value for each of 20 samples, such as '0'",
        ),
        ("text", ("data.label=same", "data.test_split=''"), "data.label 'same' has one value, 'x'"),
        (
            "text",
            ("data.label=share", "data.test_split=''"),
            r"data.label 'share' holds fractions such as 0.14.*set data.regression=true",
        ),
        ("text", ("data.label=hole", "data.test_split=''"), "data.label 'hole' has one value, 'yes'"),
        (
            "text",
            ("data.label=answer", "data.regression=true"),
            "data.label 'answer' of split 'train' does not hold numbers.*'yes'",
        ),
        (
            "text",
            ("data.label=answer", "data.test_split=test"),
            "data.label 'answer' of split 'test' holds 'maybe', unseen in training; its classes are no, yes",
        ),
        (
            "text",
            ("data.label=answer", "data.text_pair=second"),
            "data.text_pair is 'second', the second text of a pair; the columns .* are text",
        ),
        (
            "text",
            ("data.label=answer", "data.validation_split=dev"),
            "data.validation_share 0.1 and data.validation_split 'dev': give one",
        ),
        ("text", ("data.label=answer", "data.block_size=500"), "data.block_size 500 must lie in 4"),
        (
            "text",
            ("data.label=answer", "train.metric=wer", "data.test_split=''"),
            "train.metric is 'wer'; the scores of this task are accuracy",
        ),
        (
            "text",
            ("data.label=answer", "data.test_split=''", "data.validation_share=0"),
            "train.validate_every is 10, but there is no validation",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(modality, more, message, tables, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        main(modality, arguments(modality, tmp_path / "run", f"data.path={tables}", *more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model=TEXT",), "model=.* reads text; this script fine-tunes image"),
        (("model=NOWHERE",), "model is .*nowhere: no export or run folder"),
        (("model=EMPTY",), "model is .*: no export or run folder .with config.json. and no checkpoint file"),
        (("data.mixup=0.8", "train.batch_size=5"), "train.batch_size is 5; data.mixup and data.cutmix mix pairs"),
        (("data.auto_augment=rand-m9",), "data.auto_augment needs images of 3 channels"),
        (("data.color_jitter=0.4", "data.auto_augment=rand-m9"), "takes the place of data.color_jitter, which is 0.4"),
        (
            ("data.regression=true", "data.mixup=0.8", "data.label_smoothing=0"),
            "data.mixup is 0.8, of classes: set it to 0",
        ),
        (("data.regression=true",), "learns numbers, and data.label_smoothing is 0.1, of classes: set it to 0"),
        (("data.random_erase=1.5",), "data.random_erase is 1.5; it must be at least 0 and at most 1"),
        (("train.layers=half",), "train.layers is 'half'; it may be all, frozen"),
        (("train.layers=frozen",), "trains the head alone, and train.layer_decay is 0.75, of the encoder: set it to 1"),
        (("train.freeze=[trunk.block]",), "no parameter of the encoder begins with 'trunk.block'"),
        (("train.ema_decay=1",), "train.ema_decay is 1"),
        (("train.freeze_steps=21",), "train.freeze_steps is 21; it must be between 0 and train.steps, 20"),
        (("train.layer_decay=0",), "train.layer_decay is 0"),
        (("task.pooling=max",), "task.pooling is 'max'"),
        (("task.poling=mean",), "unknown key 'task.poling'.*did you mean 'pooling'"),
        (("objective.top_k=2",), "unknown key 'objective'"),
        (("data.mask_ratio=0.5",), "unknown key 'data.mask_ratio'"),
        (("run.health_every=5",), "run.health_every is 5; it is a setting of pretraining"),
        (("run.dir=''",), "run.dir is required"),
    ],
)
def test_bad_commands_are_refused_in_one_line(more, message, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"TEXT": tiny.finished("text") / "export", "NOWHERE": tmp_path / "nowhere", "EMPTY": tmp_path / "empty"}
    more = tuple(f"model={places[arg.removeprefix('model=')]}" if arg.startswith("model=") else arg for arg in more)
    with pytest.raises(ValueError, match=message) as caught:
        main("image", arguments("image", tmp_path / "run", *more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_config_of_another_modality_and_no_config(tmp_path):
    for argv, message in (
        (arguments("text", tmp_path), "finetune_tiny.yaml is a config for text; this script fine-tunes image"),
        ([], "usage: CONFIG"),
        (["model=x"], "usage: CONFIG"),
    ):
        with pytest.raises(ValueError, match=message):
            main("image", argv)


def test_a_resumed_run_does_not_need_what_it_started_from(tmp_path):
    source = tmp_path / "export"
    shutil.copytree(tiny.finished("text") / "export", source)
    command = arguments("text", tmp_path / "run", f"model={source}")
    main("text", command)
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(source)
    assert main("text", command)


@pytest.mark.parametrize("sharding", ["none", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_and_choose_as_one(sharding, tmp_path):
    more = (
        "train.validate_every=5",
        "train.patience=9",
        "data.mixup=0.8",
        "model.trunk.drop_path=0",
        "train.lr=1e-4",
        "train.ema_decay=0.9",
    )
    main("image", arguments("image", tmp_path / "one", *more))
    command = arguments("image", tmp_path / "two", *more, f"train.sharding={sharding}")
    assert tiny.wait(tiny.start(finetune_image.main, command, world=2)) == [0, 0]
    one, two = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert one.keys() == two.keys() and [one[step] for step in one] == pytest.approx(
        [two[step] for step in one], rel=1e-4
    )
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["scores"]["test"]["loss"] == pytest.approx(results[1]["scores"]["test"]["loss"], rel=1e-3)
    assert results[0]["steps"] == results[1]["steps"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_says_what_it_is_and_trains_when_made_tiny(path, tmp_path):
    header = path.read_text().split("model:")[0]
    assert all(word in header for word in ("# command:", "# hardware:", "hours:", "expected:"))
    modality = path.parent.name
    if modality not in DEMO:
        pytest.skip(f"{modality} is tried in its own tests")
    raw = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(raw, dict)
    more = [
        str(path),
        *arguments(modality, tmp_path / "run", "train.steps=2", "train.validate_every=1", "run.workers=0")[1:],
    ]
    more += [
        "train.mixed_precision=no",
        "data.split=train",
        "data.test_split=test",
        "data.validation_split=test",
        "data.validation_share=0",
    ]
    more += ["data.auto_augment=''"] if modality == "image" else ["data.text=text"]
    main(modality, more)
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]
