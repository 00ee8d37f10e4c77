"""What is said before the first step and after twenty; run.dry; processes that were asked for and are not there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from d2v.training.forecast import Forecast, duration, gigabytes
from scripts import finetune


def test_the_steps_after_the_warm_up_are_counted_and_the_rest_of_the_run_told():
    forecast = Forecast(1000, torch.device("cpu"))
    now = time.perf_counter()
    ends = [forecast.add(now - (9.0 if step < 5 else 0.5), waited=0.2) for step in range(20)]
    assert ends == [False] * 19 + [True] and forecast.seconds == pytest.approx(15 * 0.5, abs=0.1)
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1000)).sum().backward()
    optimizer.step()
    line = forecast.line(model, optimizer, Path(), keep=2)
    assert "0.5 s a step: 8 min for the 980 steps that are left" in line
    assert "disk 44.0 MB of" in line  # 3 x (4 MB of weights and 8 MB of moments), and 2 x 4 MB of exports
    assert "40% of the time is spent waiting for data: run.workers=2 or more may help" in line


def test_a_run_of_few_steps_is_told_at_its_end():
    forecast = Forecast(3, torch.device("cpu"))
    assert [forecast.add(time.perf_counter(), 0.0) for _ in range(3)] == [False, False, True] and forecast.seconds > 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (70, "70 s"), (1800, "30 min"), (7500, "2 h 5 min"), (273600, "3 d 4 h")]
)
def test_durations_are_for_a_person(seconds: float, said: str):
    assert duration(seconds) == said


def test_bytes_are_for_a_person():
    assert (gigabytes(2.34e9), gigabytes(5.6e6)) == ("2.3 GB", "5.6 MB")


def test_a_run_says_where_it_trains_and_a_dry_one_writes_nothing(tmp_path: Path, capsys):
    run = tmp_path / "run"
    tiny.pretrain.main(tiny.arguments("image", run, "train.steps=500", "run.dry=true"))
    said = capsys.readouterr().out
    assert "training on cpu, precision no" in said and "a step: " in said and "for the 480 steps that are left" in said
    assert "verdict" not in said and not run.exists() and list(tmp_path.iterdir()) == []


def test_a_dry_run_of_fine_tuning_writes_nothing(tmp_path: Path, capsys):
    command = [
        str(tiny.ROOT / "configs/text/finetune_tiny.yaml"), "data.path=demo", "data.test_split=test", *tiny.TRUNK[:-1],
        "data.vocab_size=300", "train.steps=30", "train.warmup_steps=0", f"run.dir={tmp_path / 'run'}", "run.dry=true",
    ]  # fmt: skip
    assert finetune.main(command) == {}
    assert "for the 10 steps that are left" in capsys.readouterr().out and not (tmp_path / "run").exists()


def launched(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_processes_that_the_launcher_did_not_start_are_one_line(tmp_path: Path):
    set_by_launcher = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    done = launched([sys.executable, "-m", "d2v", "pretrain", *tiny.arguments("image", tmp_path)], set_by_launcher)
    assert done.returncode == 2 and done.stderr.startswith("error: accelerate launch --cpu was asked for several")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun_on_the_cpu_is_one_run_of_two_processes(tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29417"]
    done = launched([*torchrun, "-m", "d2v", "pretrain", *tiny.arguments("image", tmp_path)], {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "training 2 processes on cpu, cpu" in done.stdout and done.stdout.count("verdict: ") == 1
    assert len(tiny.losses(tmp_path)) == 20
