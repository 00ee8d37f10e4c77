"""The loop: accumulation, bad steps, settings that may not change a run, collapse, a frozen teacher."""

import json
import multiprocessing
from pathlib import Path

import pytest
import tiny
import torch
from tiny import MODALITIES, RUNS

from d2v.training.loading import MicroBatches, loaded


class Poisoned:
    """Batches with a NaN in the inputs of some steps."""

    def __init__(self, batches, steps):
        self.batches, self.steps = batches, set(steps)

    def __call__(self, step, part, parts):
        views, ids = self.batches(step, part, parts)
        if step in self.steps:
            for value in views[0].inputs.values():
                if value.is_floating_point():
                    value.view(-1)[0] = float("nan")
        return views, ids


def modality_of_floats(folder: Path) -> str:
    """One whose inputs can hold a NaN."""
    for name in MODALITIES:
        views, _ = tiny.batches_of(tiny.config_of(name, folder))(0, 0, 1)
        if any(value.is_floating_point() for value in views[0].inputs.values()):
            return name
    raise AssertionError("no modality has floating inputs")


def everything(loop) -> dict[str, torch.Tensor]:
    """Weights and moments, copied."""
    tensors = {name: value.clone() for name, value in loop.objective.state_dict().items()}
    for number, state in enumerate(loop.optimizer.state.values()):
        tensors |= {f"moments.{number}.{name}": value.clone() for name, value in state.items()}
    return tensors


SEE_ALL = ("capi", "wav2vec2")  # of those that hide tokens: they look at a batch as a whole


@pytest.mark.parametrize(("modality", "objective"), RUNS)
def test_two_micro_batches_are_one_batch(modality, objective, tmp_path):
    settings = tiny.using(objective), "train.steps=6"
    if (tiny.compares_views(objective) and objective not in tiny.ALONE) or objective in SEE_ALL:
        with pytest.raises(ValueError, match=r"train.accumulate is 2; .* compares the samples of a whole batch"):
            tiny.loop_of(tiny.config_of(modality, tmp_path, *settings, "train.accumulate=2"))
        return
    loops = [
        tiny.loop_of(tiny.config_of(modality, tmp_path / str(n), *settings, f"train.accumulate={n}")) for n in (1, 2)
    ]
    for loop in loops:
        loop()
    one, two = (tiny.losses(tmp_path / str(n)) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    for (name, a), (_, b) in zip(
        loops[0].objective.named_parameters(), loops[1].objective.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("modality", MODALITIES)
def test_settings_under_run_change_nothing(modality, tmp_path):
    first = tiny.loop_of(
        tiny.config_of(
            modality, tmp_path / "a", *tiny.DROPOUT, "train.steps=6", "run.save_every=100", "run.health_every=100"
        )
    )
    first()
    others = (
        "run.workers=2",
        "run.log_every=2",
        "run.health_every=2",
        "run.save_every=3",
        "run.keep=1",
        "run.health_samples=8",
    )
    second = tiny.loop_of(
        tiny.config_of(modality, tmp_path / "b", *tiny.DROPOUT, "train.steps=6", *others), health=True
    )
    second()
    tiny.assert_same(everything(second), everything(first))
    one, two = tiny.losses(tmp_path / "a"), tiny.losses(tmp_path / "b")
    assert two == pytest.approx({step: (one[step - 1] + one[step]) / 2 for step in (2, 4, 6)}, rel=1e-6)
    assert len(list((tmp_path / "b" / "checkpoints").glob("[0-9]*"))) == 1


def test_loading_processes_end_with_the_steps_whoever_holds_on_to_them(tmp_path):
    """Python would end them at its exit by a signal, which they ignore: a run that is done would never end."""
    config = tiny.config_of(MODALITIES[0], tmp_path)
    batches = loaded(MicroBatches(tiny.batches_of(config), 0, 1, 1), range(4), 2, torch.device("cpu"))
    next(batches)
    held = batches.gi_frame.f_locals["source"]
    workers = multiprocessing.active_children()
    assert len(workers) == 2 and held is not None
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_a_batch_that_is_not_finite_is_skipped(tmp_path):
    modality = modality_of_floats(tmp_path)
    config = tiny.config_of(modality, tmp_path, "train.steps=4")
    batches = Poisoned(tiny.batches_of(config), [1])
    loop = tiny.loop_of(config, batches=batches)
    loop.model.train()
    source = loop._batches()
    loop._step(source)
    before = everything(loop)
    loop._step(source)
    after = everything(loop)
    # the teacher still moves towards a student that stood still
    tiny.assert_same(*({k: v for k, v in state.items() if not k.startswith("teacher.")} for state in (after, before)))
    assert all(value.isfinite().all() for value in after.values())
    loop._step(source)
    student = [name for name in after if name.startswith("student.")]
    assert any(not torch.equal(everything(loop)[name], after[name]) for name in student)
    loop.meter.flush(True)
    (line,) = (tmp_path / "bad_steps.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 1 and record["samples"] == batches(1, 0, 1)[1] and len(record["samples"]) == 4


def test_a_run_with_bad_steps_ends_well_or_says_why_not(tmp_path):
    modality = modality_of_floats(tmp_path)
    scattered = tiny.config_of(
        modality, tmp_path / "scattered", "train.steps=7", "train.max_bad_steps=2", "run.log_every=7"
    )
    loop = tiny.loop_of(scattered, batches=Poisoned(tiny.batches_of(scattered), [0, 2, 4]))
    loop()
    assert loop.history.records[-1]["skipped"] == 3 and torch.isfinite(torch.tensor(loop.history.records[-1]["loss"]))
    row = tiny.config_of(modality, tmp_path / "row", "train.steps=20", "train.max_bad_steps=3")
    loop = tiny.loop_of(row, batches=Poisoned(tiny.batches_of(row), range(2, 20)))
    with pytest.raises(
        ValueError, match=r"3 steps in a row, up to step 4.*bad_steps.jsonl.*train.lr.*train.max_bad_steps=3"
    ):
        loop()
    assert len((tmp_path / "row" / "bad_steps.jsonl").read_text().splitlines()) == 3


def test_stop_on_collapse(tmp_path):
    """A predictor that says nothing and learns nothing."""
    for number, stop in enumerate(("true", "false")):
        more = (
            "train.steps=12",
            "train.lr=1e-30",
            "run.health_every=3",
            f"run.stop_on_collapse={stop}",
            "run.log_every=3",
        )
        config = tiny.config_of(MODALITIES[0], tmp_path / stop, *more)
        objective = tiny.objective_of(config)
        for parameter in objective.predictor.parameters():
            torch.nn.init.zeros_(parameter)
        loop = tiny.loop_of(config, objective=objective, health=True)
        assert loop().state == "collapsed"
        assert (loop.progress.step < 12) == (number == 0)


def test_a_frozen_teacher_stays_and_the_student_moves(tmp_path):
    for name, update in (("on", "true"), ("off", "false")):
        loop = tiny.loop_of(
            tiny.config_of(MODALITIES[0], tmp_path / name, "train.steps=3", f"train.update_teacher={update}")
        )
        before = {key: value.clone() for key, value in loop.objective.state_dict().items()}
        loop()
        moved = {
            key.partition(".")[0]
            for key, value in loop.objective.state_dict().items()
            if not torch.equal(value, before[key])
        }
        assert moved == ({"student", "teacher", "predictor"} if name == "on" else {"student", "predictor"})


def test_rates_follow_the_step(tmp_path):
    config = tiny.config_of(
        MODALITIES[0],
        tmp_path,
        "train.steps=5",
        "train.warmup_steps=2",
        "train.lr=1e-3",
        "objective.ema_anneal_steps=4",
    )
    loop = tiny.loop_of(config)
    loop()
    records = loop.history.records
    assert [r["lr"] for r in records] == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 2.5e-4])
    decay, end = config.objective.ema_decay, config.objective.ema_end_decay
    assert [r["ema_decay"] for r in records] == pytest.approx(
        [decay + (end - decay) * min(1, n / 4) for n in range(1, 6)]
    )


def test_history_survives_a_line_that_was_cut_off(tmp_path):
    config = tiny.config_of(MODALITIES[0], tmp_path, "train.steps=2", "run.save_every=1")
    tiny.loop_of(config)()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    config.train.steps = 4
    tiny.loop_of(config)()
    assert sorted(tiny.losses(tmp_path)) == [1, 2, 3, 4]
