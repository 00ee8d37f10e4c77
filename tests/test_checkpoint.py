"""Checkpoints are whole or not there; damaged ones are passed over, and said."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator

from d2v.training import checkpoint


class Run:
    """A model, its optimizer and its progress; each step changes all of them."""

    def __init__(self):
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(2, 2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.progress = checkpoint.Progress()
        self.accelerator.register_for_checkpointing(self.progress)

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
    assert checkpoint.restore(run.accelerator, folder, said.append) == folder / "00000003" and not said
    expected = torch.load(folder.parent / "end.pt", weights_only=True)
    assert run.progress.step == 3 and all(
        torch.equal(value, expected[name]) for name, value in run.model.state_dict().items()
    )
    assert next(iter(run.optimizer.state.values()))["step"] == 3
    draws = []
    for _ in range(2):  # randomness goes on where it was
        checkpoint.restore(run.accelerator, folder, said.append)
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
    assert checkpoint.restore(run.accelerator, folder, said.append) == folder / "00000002"
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
