"""What a user meets beside the main road: where results lie, what a table compares, what a picture leaves out."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from d2v.config.loading import load_config
from d2v.evaluation.run import result_file
from d2v.finetuning.outcome import table_of_runs
from d2v.training.curves import PANELS, curves_figure
from scripts import evaluate


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
        "| run | accuracy |",
        "|---|---|",
        "| birds | 0.5 |",
        "| cats | 0.75 |",
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
