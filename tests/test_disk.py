"""A disk that is full, or a place that takes no file: one line with the path and what to do; what was saved stays.

Limits on the size of files give real errors of the system anywhere; full disks are small ones that are mounted for a
test, where that is allowed.
"""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image

from d2v import files
from d2v.config.cli import run_cli
from d2v.config.loading import save_yaml
from d2v.evaluation.feature_table import Shards
from d2v.finetuning.rows import write_rows
from d2v.training import checkpoint
from d2v.training.curves import plot_curves
from d2v.training.run_folder import BadSamples
from d2v.training.run_log import History
from scripts import convert, embed, evaluate, finetune_image, pretrain


@contextmanager
def files_of_at_most(size: int):
    """Larger ones fail as the system makes them fail (EFBIG); Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def small_model():
    return tiny.objective_of(tiny.config_of("image", "unused")).student["encoder"]


def write_checkpoint(folder: Path) -> None:
    accelerator, model = Accelerator(), torch.nn.Linear(40, 40)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    checkpoint.save(accelerator, folder, 2, keep=2)


def write_export(folder: Path) -> None:
    with files.replaced(folder) as draft:
        small_model().save_pretrained(draft)


def write_by_torch(path: Path) -> None:
    with files.written(path) as draft:
        torch.save({"a": torch.zeros(900)}, draft)


def shards_of(folder: Path, name: str) -> Shards:
    shards = Shards(folder / name, {})
    shards.add(0, ["a"] * 500, np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32), [], "")
    return shards


WRITERS = {
    "a checkpoint": write_checkpoint,
    "an export": lambda folder: write_export(folder / "export"),
    "a log line": lambda folder: History(folder / "metrics.jsonl", 0, write=True).add({"step": 1, "text": "x" * 900}),
    "a bad sample": lambda folder: BadSamples(folder / "bad.jsonl")("a" * 900, "b"),
    "a config": lambda folder: save_yaml({"a": "x" * 900}, folder / "config.yaml"),
    "curves": lambda folder: plot_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], folder / "a.png"),
    "a part of a table": lambda folder: shards_of(folder, "a.parquet"),
    "predictions": lambda folder: write_rows(folder / "a.csv", [{"id": "x" * 900}]),
    "a checkpoint for fairseq": lambda folder: write_by_torch(folder / "a.pt"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_that_the_system_does_not_take_is_one_line(what, tmp_path):
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    (tmp_path / ".d2v").write_text("{}")
    with files_of_at_most(300), pytest.raises(ValueError) as raised:
        WRITERS[what](tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message and "\n" not in message
    assert "raise that, or choose another place" in message or "free some space there" in message
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size}
    assert left <= {".d2v", "settings.json"}  # no half file, no draft


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_table_that_cannot_be_joined_keeps_its_parts(ending, tmp_path):
    shards = shards_of(tmp_path, f"a.{ending}")
    (tmp_path / f"a.{ending}").write_bytes(b"the former one")
    with files_of_at_most(9000), pytest.raises(ValueError, match=rf"a\.(ids|{ending}).*: File too large; "):
        shards.join()
    assert (tmp_path / f"a.{ending}").read_bytes() == b"the former one" and shards.has(0, "")
    shards.join()
    if ending == "npy":
        expected = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
        assert json.loads((tmp_path / "a.ids.json").read_text()) == ["a"] * 500


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    history = History(tmp_path / "metrics.jsonl", 0, write=True)
    history.add({"step": 1})
    with files_of_at_most(20), pytest.raises(ValueError, match=r"metrics.jsonl: File too large"):
        history.add({"step": 2, "loss": 0.123456789})
    history.add({"step": 3})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize("target", ["a.onnx", "stock"])
def test_a_conversion_that_finds_no_room_is_one_line(target, tmp_path):
    if target.endswith("onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    source = tiny.finished("image" if target != "stock" else "text") / "export"
    with files_of_at_most(5000), pytest.raises(ValueError, match=rf"cannot write .*{target}.*File too large") as raised:
        convert.main([str(source), str(tmp_path / target)])
    assert "\n" not in str(raised.value) and not (tmp_path / target).exists()


# Whole runs on a disk that is too small.


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of so many kilobytes, or makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size: int) -> Path:
        options = f"size={size}k" + (",remount" if os.path.ismount(place) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small disk can be mounted here")
        return place

    yield make
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", tiny.first([400, 120, 700, 1100], of=2))
def test_a_run_on_a_full_disk_ends_in_a_line_and_goes_on_once_there_is_room(size, disk, tmp_path, capsys):
    whole = tiny.arguments("image", tmp_path / "whole", "run.save_every=4", "run.keep=9", "train.steps=12")
    pretrain.main(whole)
    run = disk(size) / "run"
    line = tiny.arguments("image", run, "run.save_every=4", "run.keep=9", "train.steps=12")
    with pytest.raises(ValueError, match=rf"^cannot write {run}.*free some space there") as raised:
        pretrain.main(line)
    assert "\n" not in str(raised.value)
    saved = checkpoint.checkpoints_in(run / "checkpoints")
    assert not [path for path in saved if checkpoint.damage(path)]
    assert not list(run.rglob("*.tmp")) and not (run / "export").exists()
    disk(8000)
    capsys.readouterr()
    pretrain.main(line)
    assert bool(saved) == ("resuming from step" in capsys.readouterr().out)
    assert tiny.losses(run) == tiny.losses(tmp_path / "whole")
    tiny.assert_same(tiny.checkpoint_tensors(run, 12), tiny.checkpoint_tensors(tmp_path / "whole", 12))


def test_the_other_scripts_on_a_full_disk(disk, tmp_path):
    model = tiny.finished("image") / "export"
    small = disk(16)
    for name in ("out.parquet", "out.npy"):
        config = str(tiny.ROOT / "configs" / "image" / "demo.yaml")
        with pytest.raises(ValueError, match=rf"^cannot write {small}.*free some space") as raised:
            embed.main([config, f"model={model}", "data.path=demo", "data.split=test", f"out={small / name}"])
        assert "\n" not in str(raised.value) and not (small / name).exists()
        shutil.rmtree(small / f"{name}.parts")
    (small / "filler").write_bytes(b"x")
    filled = 1 << 12
    while filled:
        try:
            with (small / "filler").open("ab") as file:
                file.write(b"x" * filled)
                file.flush()
        except OSError:
            filled //= 2
    with pytest.raises(ValueError, match=rf"^cannot write {small}.*free some space") as raised:
        evaluate.main([config, f"model={model}", "data.path=demo", "evaluate.reports=[]", f"run.dir={small / 'run'}",
                       "evaluate.max_train=40", "evaluate.max_test=20", "evaluate.probe=false"])  # fmt: skip
    assert "\n" not in str(raised.value)


def test_finetuning_on_a_full_disk(disk, tmp_path):
    for label in ("cat", "dog"):
        for number in range(8):
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    trunk = ("dim=32", "depth=2", "num_heads=2", "mlp_dim=64")
    frontend = ("image_size=8", "patch_size=2", "channels=1")
    settings = [f"model.trunk.{one}" for one in trunk] + [f"model.frontends.image.{one}" for one in frontend]
    settings += [f"data.{one}" for one in ("split=train", "test_split=''", "mean=[0.3]", "std=[0.38]", "flip=0")]
    settings += [f"train.{one}" for one in ("steps=2", "warmup_steps=0", "batch_size=4", "validate_every=1")]
    config = str(tiny.ROOT / "configs" / "image" / "finetune_tiny.yaml")
    for size in (60, 130, 300):
        run = disk(size) / str(size)
        with pytest.raises(ValueError, match=rf"^cannot write {run}.*free some space there") as raised:
            finetune_image.main([config, *settings, f"data.path={tmp_path / 'data'}", f"run.dir={run}"])
        assert "\n" not in str(raised.value)
        shutil.rmtree(run)


# Places that take nothing.


@pytest.mark.parametrize("place", ["a file", "below a file", "too long", "not ours"])
@pytest.mark.parametrize("script", ["pretrain", "finetune", "embed", "evaluate", "convert"])
def test_a_place_that_takes_nothing_is_named(place, script, tmp_path):
    (tmp_path / "file").write_text("the user's")
    where = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "inner",
        "too long": tmp_path / ("n" * 300),
        "not ours": Path("/sys/nowhere"),  # where nobody makes a folder, root neither
    }[place]
    if place == "not ours" and not Path("/sys").is_dir():
        pytest.skip("no /sys")
    model, config = tiny.finished("text") / "export", str(tiny.ROOT / "configs" / "text" / "demo.yaml")
    tuning = str(tiny.ROOT / "configs" / "text" / "finetune_tiny.yaml")
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word{n} more,{n % 2}\n" for n in range(40)))
    small = ("evaluate.max_train=200", "evaluate.max_test=20", "evaluate.probe=false", "evaluate.random_seeds=0")
    run = {
        "pretrain": lambda: pretrain.main(tiny.arguments("text", where)),
        "finetune": lambda: finetune_script(tuning, where, tmp_path),
        "embed": lambda: embed.main([config, f"model={model}", "data.path=demo", f"out={where / 'a.parquet'}"]),
        "evaluate": lambda: evaluate.main([config, f"model={model}", "data.path=demo", f"run.dir={where}", *small]),
        "convert": lambda: convert.main([str(model), str(where)]),
    }[script]
    with pytest.raises(ValueError) as raised:
        run()
    assert str(where) in str(raised.value) or str(where.parent) in str(raised.value)
    assert "\n" not in str(raised.value) and (tmp_path / "file").read_text() == "the user's"


def finetune_script(config: str, where: Path, tmp_path: Path) -> None:
    from scripts import finetune

    data = ("split=train", "test_split=''", "validation_split=''", "vocab_size=300")
    line = [config, f"data.path={tmp_path / 'rows.csv'}", f"run.dir={where}", "train.batch_size=4", "train.steps=1"]
    finetune.main([*line, "train.warmup_steps=0", *(f"data.{one}" for one in data)])


# The command line.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EDQUOT])
def test_what_the_system_says_is_a_line_of_the_command_line(number, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])

    def main(argv: list[str]) -> None:
        raise OSError(number, os.strerror(number), "/some/place")

    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith(f"error: cannot write /some/place: {os.strerror(number)}; ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "x"), ConnectionResetError(), RuntimeError("a bug"), KeyError("a")]
)
def test_bugs_keep_their_trace(error, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])

    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        run_cli(main)
    with pytest.raises(type(error)), files.writing(Path("x")):
        raise error
