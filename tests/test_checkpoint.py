"""Checkpoints are whole or not there; damaged ones are passed over, and said."""

import json
import os
import pickle
import shutil
import zlib

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from d2v.interop.pretrained import load_whole
from d2v.interop.renaming import read_checkpoint
from d2v.training import checkpoint


class Run:
    """A model, its optimizer and its progress; each step changes all of them."""

    def __init__(self):
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(2, 2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.progress = checkpoint.Progress()

    def restore(self, folder, say):
        last = checkpoint.restore(self.accelerator, folder, say)
        if last is not None:
            self.progress.step = checkpoint.step_of(last)
        return last

    def step(self, folder, keep=2):
        self.model(torch.randn(3, 2)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        checkpoint.save(self.accelerator, folder, self.progress.step, keep)


@pytest.fixture
def said():
    return []


@pytest.fixture
def folder(tmp_path):
    """Three steps, of which the last two were kept; beside it what was left of a save that was killed."""
    run, folder = Run(), tmp_path / "checkpoints"
    for _ in range(3):
        run.step(folder)
    (folder / ".00000004.tmp").mkdir()
    (folder / ".00000004.tmp" / "model.safetensors").write_bytes(b"half")
    torch.save(run.model.state_dict(), tmp_path / "end.pt")
    return folder


def names(folder):
    return [path.name for path in checkpoint.checkpoints_in(folder)]


def test_nothing_to_restore(tmp_path, said):
    assert checkpoint.restore(Run().accelerator, tmp_path / "nowhere", said.append) is None and not said


def test_the_newest_is_restored_and_leftovers_are_not_seen(folder, said):
    assert names(folder) == ["00000002", "00000003"]
    run = Run()
    assert run.restore(folder, said.append) == folder / "00000003" and not said
    expected = torch.load(folder.parent / "end.pt", weights_only=True)
    assert run.progress.step == 3 and all(
        torch.equal(value, expected[name]) for name, value in run.model.state_dict().items()
    )
    assert next(iter(run.optimizer.state.values()))["step"] == 3
    draws = []
    for _ in range(2):  # randomness goes on where it was
        run.restore(folder, said.append)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
    run.step(folder)
    assert names(folder) == ["00000003", "00000004"] and not list(folder.glob(".*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (cut, "model.safetensors", "model.safetensors has .* bytes instead of"),
        (flip, "model.safetensors", "model.safetensors has changed since it was written"),
        (flip, "optimizer.bin", "optimizer.bin has changed"),
        (lambda path: path.unlink(), "optimizer.bin", "optimizer.bin is missing"),
        (lambda path: path.unlink(), "random_states_0.pkl", "random_states_0.pkl is missing"),
        (lambda path: path.unlink(), checkpoint.MANIFEST, "manifest.json is missing"),
        (cut, checkpoint.MANIFEST, "manifest.json is missing or cannot be read"),
    ],
)
def test_a_damaged_one_is_passed_over(damage, name, message, folder, said):
    damage(folder / "00000003" / name)
    run = Run()
    assert run.restore(folder, said.append) == folder / "00000002"
    assert run.progress.step == 2 and len(said) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said[0])
    assert "00000003" in said[0] and "trying the one before" in said[0]
    run.step(folder)  # and the damaged one is replaced
    assert checkpoint.damage(folder / "00000003") is None


def test_all_damaged_is_an_error_that_names_them(folder, said):
    for path in checkpoint.checkpoints_in(folder):
        cut(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"damaged: 00000002, 00000003; choose another run.dir"):
        checkpoint.restore(Run().accelerator, folder, said.append)
    assert len(said) == 2


def test_the_manifest_lists_every_file(folder):
    place = folder / "00000003"
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert set(json.loads((place / checkpoint.MANIFEST).read_text())) == files - {checkpoint.MANIFEST}
    shutil.rmtree(folder)


def seal(place, without=()):
    """A manifest of what lies there now, as whoever can write there can make it."""
    manifest = {}
    for path in sorted(place.iterdir()):
        if path.name not in (checkpoint.MANIFEST, *without):
            data = path.read_bytes()
            manifest[path.name] = [len(data), zlib.crc32(data)]
    (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "model.safetensors"]
)
@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_no_file_of_a_checkpoint_is_unpickled_though_the_manifest_names_it(name, kind, folder, said, tmp_path):
    place, evil = folder / "00000003", Evil(tmp_path / "ran")
    if kind == "zip":
        torch.save({"step": 3, "evil": evil}, place / name)
    else:
        (place / name).write_bytes(pickle.dumps({"step": 3, "evil": evil}))
    if name == "custom_checkpoint_0.pkl":
        (place / "progress.json").unlink(missing_ok=True)
    seal(place)
    run = Run()
    assert run.restore(folder, said.append) == folder / "00000002" and run.progress.step == 2
    assert not (tmp_path / "ran").exists()
    assert len(said) == 1 and "\n" not in said[0] and "weights_only" not in said[0] and "is damaged" in said[0]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, "does not name model.safetensors, optimizer.bin, progress.json, random_states_0.pkl"),
        ([], "does not say of each file its size and checksum"),
        (["model.safetensors"], "does not say of each file its size and checksum"),
        ({"model.safetensors": 3}, "does not say of each file its size and checksum"),
        ("optimizer.bin", "manifest.json does not name optimizer.bin"),
        ("progress.json", "manifest.json does not name progress.json"),
        ("random_states_0.pkl", "manifest.json does not name random_states_0.pkl"),
        ("of another process", "manifest.json does not name random_states_1.pkl"),
    ],
)
def test_a_manifest_that_names_too_little_is_damage(manifest, message, folder, said):
    place = folder / "00000003"
    if isinstance(manifest, str):  # a file that it leaves out
        if manifest == "of another process":
            (place / "progress.json").write_text(json.dumps({"step": 3, "processes": 2}))
        seal(place, without=(manifest,))
    else:
        (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    run = Run()
    assert run.restore(folder, said.append) == folder / "00000002" and run.progress.step == 2
    assert len(said) == 1 and message in said[0]


def test_the_step_is_json_and_that_of_a_former_version_is_read(folder, said):
    place = folder / "00000003"
    assert json.loads((place / "progress.json").read_text())["step"] == 3
    (place / "progress.json").unlink()
    torch.save({"step": 3}, place / "custom_checkpoint_0.pkl")
    seal(place)
    run = Run()
    assert run.restore(folder, said.append) == place and run.progress.step == 3 and not said


def test_weights_of_another_shape_are_no_damage(folder, said):
    run = Run()
    run.accelerator._models[0] = torch.nn.Linear(2, 3)
    with pytest.raises(
        ValueError, match=r"00000003 is of another model \(size mismatch for weight.*choose another run.dir"
    ):
        run.restore(folder, said.append)
    assert not said


@pytest.mark.parametrize(
    ("content", "reason"), [({"evil": True}, "it holds .*mkdir"), (b"\x80\x05\x96", "something else")]
)
def test_a_file_of_weights_that_would_run_code_is_refused_without_advice_to_run_it(content, reason, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    if isinstance(content, dict):
        torch.save({"evil": Evil(tmp_path / "ran")}, path)
    else:
        path.write_bytes(content + bytes(9))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_hidden_layers": 1, "hidden_size": 12}))
    for read in (read_checkpoint, lambda path: load_whole(AutoModel, path.parent)):
        with pytest.raises(ValueError, match=reason) as raised:
            read(path)
        assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
