"""run.save_async: the same checkpoints to the bit, written while steps go on, by one process and by two."""

import threading
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_disk import files_of_at_most

from d2v.config.schema import RunConfig
from d2v.training import checkpoint
from d2v.training.saving import Saver
from scripts import pretrain

AT_ONCE = ("run.save_every=2", "run.keep=9", "train.steps=6", "train.warmup_steps=0", "run.health_samples=8")


def loop_of(folder: Path, *more: str):
    return tiny.loop_of(tiny.config_of("image", folder, tiny.using("moco"), *tiny.DROPOUT, *AT_ONCE, *more))


def assert_same_checkpoints(one: Path, two: Path) -> None:
    """But for the folder that no file names, all is equal to the bit."""
    first, second = (checkpoint.checkpoints_in(folder / "checkpoints") for folder in (one, two))
    assert [path.name for path in first] == [path.name for path in second] == ["00000002", "00000004", "00000006"]
    for place, other in zip(first, second, strict=True):
        assert checkpoint.damage(place) is None and checkpoint.damage(other) is None
        tiny.assert_same(load_file(other / checkpoint.WEIGHTS), load_file(place / checkpoint.WEIGHTS))
        for name in ("optimizer.bin", "random_states_0.pkl", checkpoint.PROGRESS):
            if name == checkpoint.PROGRESS:
                assert (other / name).read_text() == (place / name).read_text()
                continue
            both = [checkpoint.load_plain(folder / name) for folder in (place, other)]
            assert str(both[0]) == str(both[1])
            tiny.assert_same(tensors_of(both[1]), tensors_of(both[0]))


def tensors_of(state, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    entries = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found = {}
    for name, value in entries:
        found |= tensors_of(value, f"{prefix}.{name}")
    return found


def test_checkpoints_are_those_of_a_run_that_waits(tmp_path):
    for name, more in (("waits", ()), ("goes on", ("run.save_async=true",))):
        loop_of(tmp_path / name, *more)()
    assert_same_checkpoints(tmp_path / "waits", tmp_path / "goes on")


def test_a_step_that_follows_does_not_change_what_is_written(tmp_path, monkeypatch):
    """The disk takes a checkpoint after the run has done its other steps."""
    loop_of(tmp_path / "waits")()
    slow = loop_of(tmp_path / "slow", "run.save_async=true")
    going_on, save, step = threading.Event(), checkpoint.save_plain, slow._step
    monkeypatch.setattr(checkpoint, "save_plain", lambda *given, **named: (going_on.wait(60), save(*given, **named)))

    def steps(batches):
        if slow.progress.step in (2, 4):  # a checkpoint is on its way
            assert not slow.save.writing.done()
        step(batches)
        (going_on.clear if slow.progress.step in (2, 4) else going_on.set)()

    slow._step = steps
    slow()
    assert_same_checkpoints(tmp_path / "waits", tmp_path / "slow")


def test_what_is_one_tensor_stays_one_and_no_copy_shares_memory_with_what_is_trained():
    weight = torch.ones(3)
    state = {"a": weight, "b": [weight, {"c": weight[:2]}], "step": 3, "none": torch.empty(0)}
    copy = checkpoint._in_memory(state, {})
    weight.add_(1)
    assert copy["a"] is copy["b"][0] and copy["a"].tolist() == [1, 1, 1] and copy["b"][1]["c"].tolist() == [1, 1]
    assert copy["step"] == 3 and copy["none"].numel() == 0


def test_a_disk_that_is_full_is_one_line_at_the_next_checkpoint(tmp_path):
    loop = loop_of(tmp_path, "run.save_async=true")
    saver = Saver(loop.accelerator, tmp_path / "checkpoints", RunConfig(dir="x", save_async=True), 1)
    saver(1)
    saver.wait()
    with files_of_at_most(30_000):
        saver(2)
        with pytest.raises(ValueError, match=r"00000002\.tmp|\.00000002"):
            saver.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    saver.wait()  # said once
    saver(2)
    saver.wait()
    assert checkpoint.damage(tmp_path / "checkpoints" / "00000002") is None


def two_processes(root: Path) -> None:
    """What each of two processes does: the run, at once and aside."""
    for name in ("waits", "goes on"):
        loop_of(root / name, f"run.save_async={str(name != 'waits').lower()}")()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    assert tiny.wait(tiny.start(two_processes, tmp_path, world=2)) == [0, 0]
    assert_same_checkpoints(tmp_path / "waits", tmp_path / "goes on")
    states = [f"checkpoints/00000006/random_states_{rank}.pkl" for rank in (0, 1)]
    for name in states:
        both = [checkpoint.load_plain(tmp_path / folder / name) for folder in ("waits", "goes on")]
        tiny.assert_same(tensors_of(both[1]), tensors_of(both[0]))


def test_a_killed_run_goes_on_and_another_way_of_saving_is_no_other_run(tmp_path):
    whole = loop_of(tmp_path / "whole")
    whole()
    first = loop_of(tmp_path / "parts", "run.save_async=true")
    step = first._step

    def dying(batches):
        if first.progress.step == 5:
            raise KeyError("killed")
        step(batches)

    first._step = dying
    with pytest.raises(KeyError, match="killed"):
        first()
    first.save.writing.result()
    (tmp_path / "parts/checkpoints/.00000005.tmp").mkdir()  # of a thread that was killed
    second = loop_of(tmp_path / "parts")
    second()
    tiny.assert_same(second.objective.state_dict(), whole.objective.state_dict())
    assert not list((tmp_path / "parts/checkpoints").glob(".*"))


def test_sharded_runs_write_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"run.save_async is True.*train.sharding=fsdp"):
        pretrain.main(tiny.arguments("image", tmp_path, "run.save_async=true", "train.sharding=fsdp"))
