"""A run that is there gets another number of steps: to the bit as from the start, or one line says why not."""

import ast
import inspect
import json
import textwrap
from pathlib import Path

import pytest
import test_finetune as tuning
import tiny
import torch
from tiny import OBJECTIVES

from d2v import plugins
from d2v.objectives.common.objective import Objective
from d2v.training.loop import Loop

CONSTANT = ("train.schedule=constant", *tiny.DROPOUT)


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    monkeypatch.setattr(Loop, "plot", lambda self: None)


def contents(folder: Path) -> dict[str, torch.Tensor]:
    return tiny.load(folder / "model.safetensors")


@pytest.mark.parametrize("modality", tiny.first(tiny.MODALITIES))
def test_a_finished_run_is_made_longer_to_the_bit(modality: str, tmp_path: Path, capsys):
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    tiny.run(tiny.arguments(modality, whole, *CONSTANT))
    tiny.run(tiny.arguments(modality, longer, *CONSTANT, "train.steps=10"))
    short = contents(longer / "export")
    tiny.run(tiny.arguments(modality, longer, *CONSTANT))
    assert "resuming from step 10" in capsys.readouterr().out
    assert tiny.losses(longer) == tiny.losses(whole)
    tiny.assert_same(tiny.checkpoint_tensors(longer, 20), tiny.checkpoint_tensors(whole, 20))
    after = {name: contents(path) for name, path in tiny.sides(longer).items()}
    for name, path in tiny.sides(whole).items():
        tiny.assert_same(after[name], contents(path))
    assert any(not torch.equal(short[name], after["student"][name]) for name in short)
    assert "20 steps" in (longer / "export" / "README.md").read_text()
    tiny.run(tiny.arguments(modality, longer, *CONSTANT))
    assert "finished: nothing is changed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_stopped_may_get_longer_or_shorter(tmp_path: Path):
    whole = tmp_path / "whole"
    tiny.run(tiny.arguments("image", whole, *CONSTANT, "train.steps=15"))
    for steps in (18, 40):
        folder = tmp_path / str(steps)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_until_interrupted(tiny.arguments("image", folder, *CONSTANT, f"train.steps={steps}"), 12)
        tiny.run(tiny.arguments("image", folder, *CONSTANT, "train.steps=15"))
        tiny.assert_same(tiny.checkpoint_tensors(folder, 15), tiny.checkpoint_tensors(whole, 15))


@pytest.mark.slow
def test_where_the_rates_so_far_are_those_of_the_longer_run(tmp_path: Path):
    """tri_stage holds its rate until step 18 of 20 and 27 of 30."""
    tri_stage = ("train.schedule=tri_stage", "train.floor=0.01")
    with pytest.raises(KeyboardInterrupt):
        tiny.run_until_interrupted(tiny.arguments("image", tmp_path, *tri_stage), 12)
    tiny.run(tiny.arguments("image", tmp_path, *tri_stage, "train.steps=30"))
    with pytest.raises(ValueError, match=r"the learning rate \(train.schedule=tri_stage\) depends on it"):
        tiny.run(tiny.arguments("image", tmp_path, *tri_stage, "train.steps=40"))


REFUSED = {
    "cosine": ((), r"the learning rate \(train.schedule=cosine\)"),
    "polynomial": (("train.schedule=polynomial",), r"the learning rate \(train.schedule=polynomial\)"),
    "weight decay": (("train.schedule=constant", "train.end_weight_decay=0.4"), "the weight decay"),
    "teacher": (("train.schedule=constant", tiny.using("byol")), "what the method anneals over a run"),
}


@pytest.mark.parametrize("case", tiny.first(REFUSED))
def test_a_run_whose_steps_depend_on_its_length_says_how_to_go_on(case: str, tmp_path: Path):
    more, what = REFUSED[case]
    short = [*more, "train.steps=10"]
    tiny.run(tiny.arguments("image", tmp_path / "run", *short))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=what) as error:
        tiny.run(tiny.arguments("image", tmp_path / "run", *more))
    said = str(error.value)
    assert "\n" not in said and "(train.steps: 10 -> 20)" in said
    assert said.endswith(f"train.init_from={tmp_path / 'run'}, and another run.dir")
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    cure = f"train.init_from={tmp_path / 'run'}"
    tiny.run(tiny.arguments("image", tmp_path / "other", *more, cure))
    tiny.run(tiny.arguments("image", tmp_path / "run", *short))  # as it was


def test_fewer_steps_than_are_done(tmp_path: Path):
    tiny.run(tiny.arguments("image", tmp_path, *CONSTANT))
    with pytest.raises(ValueError, match=rf"train.steps is 15, but {tmp_path} holds a run that has done 20 steps"):
        tiny.run(tiny.arguments("image", tmp_path, *CONSTANT, "train.steps=15"))


def test_another_setting_beside_the_length_is_still_another_run(tmp_path: Path):
    tiny.run(tiny.arguments("image", tmp_path, *CONSTANT, "train.steps=10"))
    with pytest.raises(ValueError, match=r"holds a run of another config \(train.seed: 0 -> 1\)"):
        tiny.run(tiny.arguments("image", tmp_path, *CONSTANT, "train.seed=1"))


@pytest.mark.parametrize("modality", tiny.first(["image", "text"]))
@pytest.mark.parametrize("validated", tiny.first([True, False]))
def test_fine_tuning_is_made_longer_to_the_bit(modality: str, validated: bool, tmp_path: Path):
    more = ["train.schedule=constant"]
    if not validated:
        more += ["data.validation_share=0", "train.validate_every=0"]
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    tuning.main(modality, tuning.arguments(modality, whole, *more))
    tuning.main(modality, tuning.arguments(modality, longer, *more, "train.steps=10"))
    tuning.main(modality, tuning.arguments(modality, longer, *more))
    assert (longer / "results.json").read_text() == (whole / "results.json").read_text()
    assert tiny.losses(longer) == tiny.losses(whole)
    tiny.assert_same(contents(longer / "export"), contents(whole / "export"))
    tiny.assert_same(tiny.checkpoint_tensors(longer, 20), tiny.checkpoint_tensors(whole, 20))
    before = (longer / "predictions_test.csv").stat().st_mtime_ns
    scores = json.loads((longer / "results.json").read_text())["scores"]
    assert tuning.main(modality, tuning.arguments(modality, longer, *more)) == scores
    assert (longer / "predictions_test.csv").stat().st_mtime_ns == before


@pytest.mark.slow
def test_fine_tuning_that_was_made_longer_and_killed_goes_on(tmp_path: Path, monkeypatch):
    more, step = ["train.schedule=constant"], Loop._step
    tuning.main("image", tuning.arguments("image", tmp_path, *more, "train.steps=10"))

    def dying(self: Loop, batches) -> None:
        step(self, batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        tuning.main("image", tuning.arguments("image", tmp_path, *more))
    monkeypatch.setattr(Loop, "_step", step)
    tuning.main("image", tuning.arguments("image", tmp_path, *more))
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 20


@pytest.mark.slow
def test_validations_at_other_steps_are_another_run(tmp_path: Path):
    """With the default, twenty in a run, they depend on its length; the number that they had keeps them."""
    more = ["train.schedule=constant", "train.validate_every=0"]
    tuning.main("image", tuning.arguments("image", tmp_path, *more))
    with pytest.raises(ValueError, match=r"when the validation split is scored \(train.validate_every\) depends on it"):
        tuning.main("image", tuning.arguments("image", tmp_path, *more, "train.steps=40"))
    tuning.main("image", tuning.arguments("image", tmp_path, *more, "train.steps=40", "train.validate_every=1"))
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 40


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_method_that_uses_the_number_of_steps_says_what_of_it(name: str):
    """Else a run could be made longer though its steps would have been others."""
    for kind in vars(plugins.load("d2v.objectives", name)).values():
        if not inspect.isclass(kind) or not issubclass(kind, Objective) or kind is Objective:
            continue
        for method in ("begin_step", "adjust_gradients"):
            tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kind, method))))
            handed_on = {
                id(node)
                for call in ast.walk(tree)
                if ast.unparse(call) == "super().begin_step(step, steps)"
                for node in ast.walk(call)
            }
            read = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in handed_on]
            if kind.__name__ == "MoCHi":  # which asks only whether the run is long enough
                continue
            assert "steps" not in read or kind.of_length is not Objective.of_length, f"{kind.__name__}.{method}"
