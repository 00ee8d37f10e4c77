"""Ctrl-C and SIGTERM: the step is finished and saved, one line says how to go on; a second Ctrl-C stops at once, and a
second SIGTERM is none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from d2v.__main__ import COMMANDS
from d2v.__main__ import main as command_line
from d2v.config.cli import run_cli
from d2v.training import checkpoint
from d2v.training.loop import Loop
from scripts import pretrain

LONG = ("train.steps=100000", "run.save_every=100000", "run.health_every=100000", "run.log_every=5")


def started(folder: Path, *more: str, world: int = 1) -> list[subprocess.Popen]:
    """`python -m d2v pretrain ...` in other processes, once they have trained for some steps."""
    command = [sys.executable, "-m", "d2v", "pretrain", *tiny.arguments("image", folder, *LONG, *more)]
    processes = []
    for rank in range(world):
        group = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": 29411,
        }
        environment = os.environ | ({key: str(value) for key, value in group.items()} if world > 1 else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
    end = time.monotonic() + 200
    while not (folder / "metrics.jsonl").is_file() or '"loss"' not in (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < end and processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.1)
    return processes


@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_from_there(sent: int, code: int, tmp_path: Path):
    (process,) = started(tmp_path, *(["run.workers=1"] if sent == signal.SIGINT else []))
    os.killpg(process.pid, sent)  # as a terminal or a scheduler does: data loading processes get it too
    if sent == signal.SIGTERM:  # which launchers pass on to those that have it already
        time.sleep(0.05)
        os.killpg(process.pid, sent)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err
    (saved,) = checkpoint.checkpoints_in(tmp_path / "checkpoints")
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"stopped at step {int(saved.name)}, saved in {tmp_path / 'checkpoints'}; go on by: ")
    assert "-m d2v pretrain" in last and f"run.dir={tmp_path}" in last
    assert checkpoint.damage(saved) is None
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records if "loss" in one][-1] == int(saved.name)  # no step is in no line


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path: Path):
    (process,) = started(tmp_path)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(tmp_path: Path):
    processes = started(tmp_path, world=2)
    os.kill(processes[1].pid, signal.SIGTERM)  # one of them hears it
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    (saved,) = checkpoint.checkpoints_in(tmp_path / "checkpoints")
    assert int(saved.name) % 5 == 0 and f"stopped at step {int(saved.name)}" in outputs[0][0]


def test_after_a_stop_the_losses_are_those_of_a_run_that_was_never_stopped(tmp_path: Path, monkeypatch):
    whole, stopped, before = tmp_path / "whole", tmp_path / "stopped", signal.getsignal(signal.SIGINT)
    tiny.run(tiny.arguments("image", whole, *tiny.DROPOUT))
    step = Loop._step

    def interrupted(self: Loop, batches) -> None:
        step(self, batches)
        if self.progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", interrupted)
    with pytest.raises(SystemExit) as end:
        tiny.run(tiny.arguments("image", stopped, *tiny.DROPOUT))
    assert end.value.code == 130
    monkeypatch.setattr(Loop, "_step", step)
    tiny.run(tiny.arguments("image", stopped, *tiny.DROPOUT))
    assert tiny.losses(stopped) == tiny.losses(whole)
    tiny.assert_same(tiny.checkpoint_tensors(stopped, 20), tiny.checkpoint_tensors(whole, 20))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_stops_on_collapse_saves_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Loop, "_collapsed", lambda self: True)
    tiny.run(tiny.arguments("image", tmp_path, "run.stop_on_collapse=true"))
    assert [path.name for path in checkpoint.checkpoints_in(tmp_path / "checkpoints")] == ["00000010"]


def test_ctrl_c_before_the_first_step_is_one_line(monkeypatch, capsys):
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["pretrain"])
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert end.value.code == 130 and capsys.readouterr().err == "stopped; what was written before is whole\n"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twenty images in two classes, an export of their size in `run`, and files where others look for theirs."""
    root = tmp_path_factory.mktemp("photos")
    (root / "x.parquet").touch()
    (root / "classes").mkdir()
    (root / "classes" / "finetuning.yaml").touch()
    for number in range(20):
        place = root / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 * number, 0, 90)).save(place)
    small = (*tiny.TRUNK, *tiny.SHORT, "train.steps=2", f"data.path={root / 'photos'}")
    pretrain.main(["image/data2vec_tiny", *small, f"run.dir={root / 'run'}"])
    return root


READING = "PIL.Image.open"
STOPPED = {  # command, and what is called when the signal comes
    "data": (["image/data2vec_tiny", "data.path={0}/photos"], READING),
    "pretrain": (["image/data2vec_tiny", "data.path={0}/photos", "run.dir={1}/new"], READING),
    "evaluate": (
        ["image/data2vec_tiny", "data.path={0}/photos", "model={0}/run", "run.dir={1}"],
        "d2v.evaluation.run.evaluate_encoder",
    ),
    "embed": (
        ["image/data2vec_tiny", "data.path={0}/photos", "model={0}/run", "out={1}/x.parquet"],
        "d2v.evaluation.embedding.embed",
    ),
    "search": (["{0}/x.parquet", "id=1"], "pyarrow.parquet.read_table"),
    "finetune": (["image/finetune_tiny", "data.path={0}/photos", "model={0}/run", "run.dir={1}/new"], READING),
    "predict": (
        ["{0}/classes", "data.path={0}/photos", "out={1}/x.csv"],
        "d2v.finetuning.finished.load",
    ),
    "convert": (["{0}/run", "{1}/new"], "d2v.scripts.convert.load_ours"),
    "codes": (["image/beit_tiny", "data.path={0}/photos", "objective.codes={1}/codes.safetensors"], READING),
    "demo": (["image", "runs={1}"], READING),
    "configs": ([], "d2v.scripts.configs.purpose"),
    "show": (["image/data2vec_tiny"], "d2v.config.loading.find_config"),
    "completion": (["bash"], "d2v.scripts.completion.config_names"),
}


def test_every_command_is_stopped_here():
    assert STOPPED.keys() == set(COMMANDS)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_is_one_line_in_every_command(
    command: str, sent: int, code: int, photos: Path, tmp_path: Path, monkeypatch, capfd
):
    arguments, called = STOPPED[command]
    arguments = [argument.format(photos, tmp_path) for argument in arguments]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = [sent]  # once: other threads call it too

    def stopped(*_, **__) -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())
        time.sleep(0.01)

    monkeypatch.setattr(called, stopped)
    monkeypatch.setattr(sys, "argv", ["d2v", command, *arguments])
    try:
        with pytest.raises(SystemExit) as end:
            command_line()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == code
    assert capfd.readouterr().err.strip().splitlines()[-1:] == ["stopped; what was written before is whole"]


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_while_libraries_are_imported(sent: int, code: int, tmp_path: Path, root: Path):
    command = ["-m", "d2v", "search", "x.parquet", "id=1"]
    done = signalled(sent, "d2v.evaluation.queries", command, tmp_path, root)
    assert (done.returncode, done.stderr) == (code, "stopped; nothing had begun\n")


@pytest.mark.parametrize(
    "command", tiny.first([["d2v"], ["-m", "d2v"], ["-m", "scripts.pretrain"], ["{}/scripts/pretrain.py"]])
)
def test_a_signal_while_d2v_itself_is_imported(command: list[str], tmp_path: Path, root: Path):
    """Its package comes before its commands, and imports what takes longest."""
    if command == ["d2v"]:  # as pip writes it
        command = [str(tmp_path / "d2v")]
        Path(command[0]).write_text("from d2v.__main__ import main\nmain()\n")
    done = signalled(signal.SIGINT, "transformers", [part.format(root) for part in command], tmp_path, root)
    assert (done.returncode, done.stderr) == (130, "stopped; nothing had begun\n")


def test_a_program_that_imports_d2v_keeps_its_signals(tmp_path: Path, root: Path):
    done = signalled(signal.SIGINT, "transformers", ["-c", "import d2v"], tmp_path, root)
    assert done.stderr.endswith("KeyboardInterrupt\n")


def signalled(sent: int, name: str, command: list[str], folder: Path, root: Path) -> subprocess.CompletedProcess:
    """Python with a command, and a signal when it first imports a module."""
    (folder / "sitecustomize.py").write_text(
        "import builtins, os\nwhole = builtins.__import__\n"
        "def ours(name, *more, **others):\n"
        f"    if name == {name!r}:\n"
        f"        os.kill(os.getpid(), {int(sent)})\n"
        "    return whole(name, *more, **others)\n"
        "builtins.__import__ = ours\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}:{root}"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(root: Path):
    command = f"{sys.executable} -m d2v configs | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith("data/")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_full_memory_is_one_line_with_what_takes_less(error: Exception, monkeypatch, capsys):
    def main(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["pretrain"])
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: not enough memory: ") and said.count("\n") == 1
    assert "train.accumulate" in said and "train.checkpoint_activations=true" in said


def test_other_errors_keep_their_trace(monkeypatch):
    def main(argv: list[str]) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(sys, "argv", ["pretrain"])
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_cli(main)
