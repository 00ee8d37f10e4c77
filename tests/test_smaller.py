"""What a user meets beside the main road: where results lie, what a table compares, what a picture leaves out."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from d2v import plugins
from d2v.config.loading import load_config
from d2v.evaluation.report import CHECKS
from d2v.evaluation.run import result_file
from d2v.finetuning.outcome import table_of_runs
from d2v.interop.huggingface import from_transformers, to_transformers
from d2v.interop.onnx import export_onnx
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.training.curves import PANELS, curves_figure
from scripts import evaluate, finetune


def finished(folder: Path, modality: str, scores: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model:\n  frontends:\n    {modality}: {{}}\n")
    (folder / "results.json").write_text(json.dumps({"steps": 1, "scores": {"test": scores}}))
    return folder


def test_a_table_of_runs_is_of_one_modality(tmp_path: Path):
    finished(tmp_path / "birds", "image", {"accuracy": 0.5})
    finished(tmp_path / "words", "speech", {"wer": 0.25})
    mine = finished(tmp_path / "cats", "image", {"accuracy": 0.75})
    finished(tmp_path / "letters", "text", {"accuracy": 0.125})
    assert table_of_runs(tmp_path, of=mine).splitlines() == [
        "| run | of | accuracy |",
        "|---|---|---|",
        "| birds | test | 0.5 |",
        "| cats | test | 0.75 |",
    ]


@pytest.mark.parametrize("absent", [panel.title for panel in PANELS])
def test_no_panel_is_empty(absent: str):
    """Whatever is not measured, or is never a number, has no panel; each that is drawn has a curve."""
    names = {panel.title: [*panel.names] for panel in PANELS}
    history = []
    for step in (1, 2, 3):
        record: dict[str, float | None] = {"step": step}
        for title in names.keys() - {absent}:
            record |= dict.fromkeys(names[title], 0.5)
        record |= dict.fromkeys(names[absent][step % 2 :], float("nan") if step == 3 else None)
        history.append(record)
    axes = curves_figure(history).axes
    assert {one.get_title() for one in axes} == names.keys() - {absent}
    assert all(any(np.isfinite(line.get_ydata()).any() for line in one.lines) for one in axes)


def test_each_side_of_a_run_has_a_result_of_its_own_beside_it(tmp_path: Path):
    run = tmp_path / "run"
    for place in ("export", "export/student"):
        (run / place).mkdir(parents=True)
        (run / place / "config.json").write_text("{}")
    (run / "export" / "pretraining.yaml").write_text("")
    (run / "config.yaml").write_text("")
    checkpoint = run / "checkpoints" / "00000020"
    checkpoint.mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors"):
        (checkpoint / name).write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    config = load_config("image/data2vec_tiny", [f"run.dir={tmp_path / 'mine'}"])
    found = {place: result_file(str(tmp_path / place), config, in_run=False) for place in (
        "run", "run/export", "run/export/student", "run/checkpoints/00000020", "other",
    )}  # fmt: skip
    assert {place: str(path.relative_to(tmp_path)) for place, path in found.items()} == {
        "run": "run/evaluation/export_layer-last.json",
        "run/export": "run/evaluation/export_layer-last.json",
        "run/export/student": "run/evaluation/export_student_layer-last.json",
        "run/checkpoints/00000020": "run/evaluation/00000020_layer-last.json",
        "other": "evaluation/other_layer-last.json",
    }
    in_run = {str(result_file(str(path), config, in_run=True)) for path in (run / "export", run / "export" / "student")}
    assert in_run == {f"{tmp_path}/mine/evaluation/export{side}_layer-last.json" for side in ("", "_student")}


def test_an_export_is_evaluated_from_inside(tmp_path: Path, monkeypatch):
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "run" / "export")
    config = load_config("image/data2vec_tiny", [])
    expected = tmp_path / "run" / "evaluation" / "export_layer-last.json"
    assert result_file(".", config, in_run=False) == expected


@pytest.mark.slow
def test_both_sides_of_a_run_one_after_the_other(tmp_path: Path):
    tiny.run(tiny.arguments("image", tmp_path / "run"))
    exported = {path for path in (tmp_path / "run" / "export").rglob("*")}
    for side in tiny.sides(tmp_path / "run").values():
        path, *more = tiny.arguments("image", tmp_path / "run")
        cheap = ("evaluate.random_seeds=0", "evaluate.raw=false", "evaluate.probe=false", "evaluate.max_train=40")
        more = [one for one in more if not one.startswith("run.dir=")]
        evaluate.main([path, *more, *cheap, "evaluate.max_test=20", f"model={side}"])
    assert len(list((tmp_path / "run" / "evaluation").glob("*.json"))) == 2
    assert {path for path in (tmp_path / "run" / "export").rglob("*")} == exported


def test_tensorboards_files_are_in_the_run_and_named(tmp_path: Path, capsys):
    tiny.run(tiny.arguments("image", tmp_path / "run", "train.steps=2", "run.trackers=[tensorboard]"))
    assert f"TensorBoard: tensorboard --logdir {tmp_path / 'run'}\n" in capsys.readouterr().out
    (events,) = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*") if path.parent.name == "d2v"}
    assert events == tmp_path / "run" / "d2v"


CHEAP = ("evaluate.random_seeds=1", "evaluate.max_train=40", "evaluate.max_test=20")
LATE = {  # modality, settings, what is said
    **{f"{name}, labels": ("image", (f"evaluate.reports=[{name}]", "evaluate.label=''"), f"{name} needs labels")
       for name in ("abx", "few_labels", "knn_sweep", "layer_curve", "logistic")},
    **{f"{name}, test": ("image", (f"evaluate.reports=[{name}]", "evaluate.test_split=''"),
                         f"{name} needs a test split")
       for name in ("few_labels", "logistic")},
    "dense, masks": ("image", ("evaluate.reports=[dense]",), "dense needs evaluate.masks"),
    "dense, test": (
        "image", ("evaluate.reports=[dense]", "evaluate.masks=x", "evaluate.test_split=''"), "dense needs a test split"
    ),
    **{f"{name}, grid": (modality, (f"evaluate.reports=[{name}]",), f"{name} needs tokens on a grid")
       for name in ("attention", "patches") for modality in ("speech", "text")},
    **{f"{name}, tokens": ("image", (f"evaluate.reports=[{name}]", "evaluate.layer=class"), f"{name} needs tokens")
       for name in ("patches", "abx")},
    "class token": ("image", ("evaluate.layer=class",), "has no class token, but local, 1, 2, last, or all"),
    "block": ("image", ("evaluate.layer=7",), "evaluate.layer is '7'; this encoder has local, 1, 2, last, or all"),
}  # fmt: skip


@pytest.mark.parametrize("case", LATE)
def test_what_a_report_needs_is_said_before_features_are_made(case: str, tmp_path: Path, monkeypatch):
    modality, settings, said = LATE[case]
    run = tiny.finished(modality)
    for late in ("evaluate_raw", "evaluate_encoder", "make_reports"):
        monkeypatch.setattr(f"d2v.evaluation.run.{late}", lambda *_: pytest.fail("features are made"))
    config, *more = [one for one in tiny.arguments(modality, tmp_path) if not one.startswith("model.")]
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        evaluate.main([config, *more, *CHEAP, *settings, f"model={run / 'export'}"])
    assert "\n" not in str(error.value) and not (tmp_path / "evaluation").exists()


def test_of_several_models_the_last_too(tmp_path: Path, monkeypatch):
    trunk = {"dim": 32, "num_heads": 2, "mlp_dim": 64}
    for depth in (2, 0):
        encoder = D2vModel(D2vConfig(tiny.config_of("image", "").model.frontends, trunk | {"depth": depth}))
        encoder.save_pretrained(tmp_path / str(depth))
    monkeypatch.setattr("d2v.evaluation.run.evaluate_raw", lambda *_: pytest.fail("features are made"))
    config, *more = [one for one in tiny.arguments("image", tmp_path) if not one.startswith(("model.", "objective."))]
    with pytest.raises(ValueError, match="attention needs a trunk with blocks"):
        models = f"model={tmp_path / '2'},{tmp_path / '0'}"
        evaluate.main([config, *more, *CHEAP, "evaluate.reports=[attention]", models])


def test_every_report_says_what_it_needs():
    """What a report asks of its subject while it works is among what is asked before."""
    asked = {"labels(": "labels", "tested(": "test", "grid(": "grid"}
    for path in sorted((tiny.ROOT / "d2v" / "evaluation" / "reports").glob("[a-z]*.py")):
        text = path.read_text()
        needs = vars(plugins.load("d2v.evaluation.reports", path.stem)).get("NEEDS", ())
        assert set(needs) <= CHECKS.keys()
        assert {need for call, need in asked.items() if f"subject.{call}" in text} <= set(needs), path.name


def test_what_a_stock_class_cannot_hold_is_said_at_once():
    frontend = {"kind": "mel", "alibi": "head", "mel_bins": 8, "conv_dim": 8, "norm_eps": 1e-3}
    trunk = {"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64, "pre_norm": True, "input_norm": True}
    speech = load_config("speech/data2vec_tiny", []).model.frontends["speech"]
    encoder = D2vModel(D2vConfig({"speech": {**vars(speech), **frontend}}, trunk))
    with pytest.raises(ValueError, match=r"^Data2VecAudioModel cannot hold ") as error:
        to_transformers(encoder)
    said = str(error.value)
    assert said.count("cannot hold") == 1 and "\n" not in said
    for name in (
        "frontends.speech.kind=mel",
        "frontends.speech.alibi=head",
        "trunk.pre_norm=True",
        "frontends.speech.norm_eps=0.001",
    ):
        assert f"model.{name}" in said


def test_what_a_stock_model_has_that_d2v_computes_otherwise_is_said_at_once():
    config = Data2VecAudioConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, hidden_act="relu",
        feat_extract_activation="relu", conv_dim=(8, 8), conv_stride=(5, 16), conv_kernel=(10, 8),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"has hidden_act='relu'.*; it has feat_extract_activation='relu'"):
        from_transformers(Data2VecAudioModel(config))


def test_absent_packages_are_named_together(tmp_path: Path, monkeypatch):
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="ONNX needs the packages onnxruntime and onnxscript, which are not installed"):
        export_onnx(None, tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes in train/ and test/, and an export that read them in `run`."""
    root = tmp_path_factory.mktemp("splits")
    for number in range(24):
        name = f"photos/{'test' if number % 4 == 3 else 'train'}/{'ab'[number % 2]}/{number}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 * number, 0, 90)).save(root / name)
    tiny.run(pretraining(root, "run"))
    return root


def pretraining(root: Path, run: str, *more: str) -> list[str]:
    small = (*tiny.TRUNK, *tiny.SHORT, "train.steps=2", f"data.path={root / 'photos'}", f"run.dir={root / run}")
    return ["image/data2vec_tiny", *small, *more]


SPLITS = {  # setting: the command, and more of its settings
    "data.split": ("pretrain", ()),
    "evaluate.train_split": ("evaluate", ()),
    "evaluate.test_split": ("evaluate", ()),
    "run.probe.train_split": ("pretrain", ("run.probe.path={0}/photos",)),
    "run.probe.test_split": ("pretrain", ("run.probe.path={0}/photos",)),
    "data.validation_split": ("finetune", ("data.validation_share=0",)),
    "data.test_split": ("finetune", ()),
}


@pytest.mark.parametrize("setting", SPLITS)
def test_an_absent_split_is_named_by_the_setting_that_asked_for_it(setting: str, photos: Path):
    command, more = SPLITS[setting]
    more = [f"{setting}=nowhere", *(one.format(photos) for one in more)]
    with pytest.raises(ValueError, match=rf"^{setting} 'nowhere': {photos}/photos has the splits test, train") as error:
        if command == "pretrain":
            tiny.run(pretraining(photos, "other", *more))
        elif command == "evaluate":
            evaluate.main(["image/data2vec_tiny", f"data.path={photos}/photos", f"model={photos}/run", *more])
        else:
            folders = (f"data.path={photos}/photos", f"run.dir={photos}/tuned", f"model={photos}/run")
            finetune.main(["image/finetune_tiny", "train.steps=2", "train.warmup_steps=1", *folders, *more])
    assert "\n" not in str(error.value)


def test_of_labelled_data_elsewhere_its_own_settings_are_named(photos: Path):
    elsewhere = [f"evaluate.path={photos}/photos", "evaluate.train_split=nowhere"]
    with pytest.raises(ValueError, match=r"evaluate.train_split 'nowhere': .*/photos has the splits"):
        tiny.run(pretraining(photos, "other", *elsewhere))
    for name in ("evaluate.path", "run.probe.path"):
        with pytest.raises(ValueError, match=rf"{name} '?{photos}/none'? does not exist") as error:
            tiny.run(pretraining(photos, "other", f"{name}={photos}/none"))
        assert f"data.path '{photos}" not in str(error.value)
