"""Processes that do not see the same files, or that do not come, end the run with one line on each."""

import os
import shutil
import time
from pathlib import Path

import tiny
import torch

from d2v.config.loading import save_yaml
from d2v.training import checkpoint, roll_call
from d2v.training.loop import Loop
from d2v.training.run_folder import check_settings, check_shared
from d2v.training.setup import open_accelerator

PIECES = ("train.steps=4", "run.save_every=2", "run.health_every=100")


def said(call, *arguments) -> str:
    """The error that a call ends with."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def two_processes(root: Path) -> None:
    """What each of two processes does; what it was told is written down."""
    rank, lines = int(os.environ["RANK"]), []
    config = tiny.config_of("image", root / "stuck", "run.ddp_timeout=6", *PIECES)
    accelerator = open_accelerator(config.train, config.run, unused=False)
    lines.append(said(check_shared, root, accelerator))
    lines.append(said(check_shared, root / str(rank), accelerator))
    lines.append(said(checkpoint.restore, accelerator, root / str(rank) / "checkpoints", print))
    lines.append(said(checkpoint.restore, accelerator, root / "checkpoints", print))
    roll_call.PATIENCE = 4.0
    loop, step = tiny.loop_of(config, prepared=root / "prepared"), Loop._step

    def stuck(self: Loop, batches) -> None:
        if rank == 1 and self.progress.step == 1:
            (root / "1.txt").write_text("\n".join(lines))
            while not (root / "0.txt").is_file():
                time.sleep(0.1)
            os._exit(0)
        step(self, batches)

    Loop._step = stuck  # type: ignore[method-assign]
    lines.append(said(loop))
    (root / f"{rank}.txt").write_text("\n".join(lines))
    os._exit(0)  # its group is broken


def test_processes_that_do_not_see_the_same_or_do_not_come_are_named(tmp_path: Path):
    for rank in range(2):
        (tmp_path / str(rank) / "checkpoints" / f"0000000{rank}").mkdir(parents=True)
    tiny.samples_of(tiny.config_of("image", tmp_path), tmp_path / "prepared")
    assert tiny.wait(tiny.start(two_processes, tmp_path, world=2)) == [0, 0]
    shared, unshared, others, none, missing = (tmp_path / "0.txt").read_text().splitlines()
    assert shared == none == ""
    assert unshared.startswith("run.dir is ") and ", and process 1 (" in unshared
    assert unshared.endswith("it must be a folder that all processes share")
    assert "process 1 sees other checkpoints in" in others and "(00000001) than process 0 (00000000)" in others
    assert missing.startswith("process 1 did not come to step 2 within run.ddp_timeout")
    second = (tmp_path / "1.txt").read_text().splitlines()
    assert second[1] == unshared and "process 1 sees other checkpoints in" in second[2]


def test_micro_batches_may_change_at_resume_and_that_is_said(tmp_path: Path, capsys):
    """The weights are those of a run that was never cut otherwise."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    more = (*PIECES, "train.optimizer=sgd", "train.betas=[0.9,0.98]", "train.eps=1e-6")
    for accumulate in (1, 2):
        loop = tiny.loop_of(tiny.config_of("image", whole, *more, f"train.accumulate={accumulate}"))
        loop()
        if accumulate == 1:
            shutil.copytree(whole / "checkpoints" / "00000002", changed / "checkpoints" / "00000002")
    capsys.readouterr()
    loop = tiny.loop_of(tiny.config_of("image", changed, *more, "train.accumulate=2"))
    loop()
    out = capsys.readouterr().out
    assert "00000002 was saved by 1 processes with train.accumulate=1, and goes on with 1 and 2" in out
    ends = [checkpoint.read_model(folder / "checkpoints" / "00000004") for folder in (whole, changed)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-5)


def test_accumulate_and_sharding_are_no_other_config(tmp_path: Path):
    one = tiny.config_of("image", tmp_path)
    save_yaml(one.as_dict(), tmp_path / "config.yaml")
    other = tiny.config_of("image", tmp_path, "train.accumulate=2", "train.sharding=fsdp")
    check_settings(tmp_path, other, "auto")
    assert "train.lr" in said(check_settings, tmp_path, tiny.config_of("image", tmp_path, "train.lr=0.3"), "auto")
