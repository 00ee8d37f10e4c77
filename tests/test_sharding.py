"""Sharded training is training: the weights, teachers, queues, centres and exports of two processes that share all.

Two gloo processes, started once, run everything under DDP and under FSDP.
"""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from d2v.training import checkpoint
from d2v.training.loop import Loop

LARS = ("train.optimizer=lars", "train.betas=[0.9,0.98]", "train.eps=1e-6", "train.lr=0.1")
SGD = ("train.optimizer=sgd", "train.betas=[0.9,0.98]", "train.eps=1e-6", "train.lr=0.05")
RARELY = ("run.log_every=5", "run.save_every=20")
EPS = "train.eps=1e-6"  # the gradient of a key's bias is zero but for rounding, which a smaller one makes steps of
CASES: dict[str, tuple[str, ...]] = {
    "data2vec": ("train.clip=0.1", EPS, "run.health_every=10"),
    "data2vec2": (tiny.using("data2vec2"), EPS, *RARELY),
    "dino": (tiny.using("dino"), *RARELY),
    "moco": (tiny.using("moco"), *RARELY),
    "lars": (*LARS, *RARELY),
    "layers": ("model.trunk.layer_drop=0.4", "model.trunk.depth=4", EPS, *RARELY),
    "compiled": ("train.compile=true", "train.checkpoint_activations=true", "train.steps=3", EPS, "run.save_every=3"),
    "pieces": (*SGD, "train.steps=3", "train.accumulate=2", "train.checkpoint_activations=true", "train.clip=0.1"),
}
OFTEN = ("data2vec",)  # the others are of pytest -m slow
SHARDINGS = ("none", "fsdp")


def last(folder: Path) -> dict[str, Tensor]:
    """Weights, teacher and buffers at the end of a run."""
    return checkpoint.read_model(checkpoint.checkpoints_in(folder / "checkpoints")[-1])


def half(run: Path, folder: Path) -> None:
    """A run that stands at step 10 of another's 20."""
    shutil.copytree(run / "checkpoints" / "00000010", folder / "checkpoints" / "00000010")


def trained(folder: Path, *more: str) -> None:
    """A run by the loop alone, and what is exported at its end."""
    config = tiny.config_of("image", folder, *more)
    loop = tiny.loop_of(config, prepared=folder.parent / "prepared", health="run.health_every=10" in more)
    loop()
    whole = loop.whole()
    if whole is not None and loop.accelerator.is_main_process:
        for name, encoder in zip(("student", "teacher"), whole.encoders, strict=True):
            encoder.save_pretrained(folder / name)


def stopped(folder: Path) -> None:
    """A run that one process is told to stop within a step, then the other within a save, and that then goes on."""
    rank, step, save, codes = int(os.environ["RANK"]), Loop._step, checkpoint.save_shares, []
    signals = [signal.SIGTERM] if rank == 1 else []  # once: a second one would stop it at once

    def in_step(self: Loop, batches) -> None:
        if rank == 0 and self.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batches)

    def in_save(*arguments) -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())
        save(*arguments)

    for patched in ("_step", "save", ""):
        Loop._step = in_step if patched == "_step" else step  # type: ignore[method-assign]
        checkpoint.save_shares = in_save if patched == "save" else save
        try:
            trained(folder, *CASES["data2vec"], "train.sharding=fsdp")
        except SystemExit as end:
            codes.append((checkpoint.checkpoints_in(folder / "checkpoints")[-1].name, end.code))
    (folder / f"codes_{rank}.json").write_text(json.dumps(codes))


def both_ways(root: Path, *names: str) -> None:
    """What each of two processes does: runs of these cases, whole and sharded."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # inductor's code is made in minutes
    for name in names:
        for sharding in SHARDINGS:
            trained(root / f"{name}_{sharding}", *CASES[name], f"train.sharding={sharding}")


def two_processes(root: Path) -> None:
    """Runs that are whole and sharded, then those that go on with the other, and those that are stopped."""
    both_ways(root, *OFTEN)
    for before, now in (SHARDINGS, SHARDINGS[::-1], ("one", "fsdp")):
        folder = root / f"{before}_to_{now}"
        if os.environ["RANK"] == "0":
            half(root / f"data2vec_{before}", folder)
        torch.distributed.barrier()
        trained(folder, *CASES["data2vec"], f"train.sharding={now}")
    stopped(root / "stopped")


def command(root: Path) -> None:
    """The script itself."""
    more = ("train.steps=2", "train.sharding=fsdp", "run.health_every=2", "run.probe.path=demo", "run.probe.every=2")
    more += ("run.probe.max_samples=20",)
    tiny.run(tiny.arguments("image", root / "command", *more))  # it ends the group too


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All runs, those of one process too."""
    root = tmp_path_factory.mktemp("sharding")
    trained(root / "data2vec_one", *CASES["data2vec"])
    assert tiny.wait(tiny.start(two_processes, root, world=2)) == [0, 0]
    half(root / "data2vec_fsdp", root / "fsdp_to_one")
    trained(root / "fsdp_to_one", *CASES["data2vec"])
    return root


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """The runs of the other cases, and of the script."""
    root = tmp_path_factory.mktemp("others")
    names = [name for name in CASES if name not in OFTEN]
    assert tiny.wait(tiny.start(both_ways, root, *names, world=2)) == [0, 0]
    assert tiny.wait(tiny.start(command, root, world=2)) == [0, 0]
    return root


def close(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-6) -> None:
    """Every tensor, to so much of its largest entry and of 1."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        torch.testing.assert_close(found[name], value, rtol=0, atol=within * scale, msg=lambda s, n=name: f"{n}: {s}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in CASES]
)
def test_sharded_runs_are_those_of_whole_copies(name: str, request: pytest.FixtureRequest):
    root = request.getfixturevalue("root" if name in OFTEN else "others")
    none, fsdp = (root / f"{name}_{sharding}" for sharding in SHARDINGS)
    close(last(fsdp), last(none))
    assert tiny.losses(fsdp) == pytest.approx(tiny.losses(none), rel=1e-6, abs=1e-6)
    names = last(none)
    kept = {"dino": "center.value", "moco": "queue.rows"}.get(name, "student.encoder.trunk.blocks.1.norm1.weight")
    assert kept in names and any(name.startswith("teacher.") for name in names)


def test_exports_and_health_are_the_same(root: Path):
    none, fsdp = (root / f"data2vec_{sharding}" for sharding in SHARDINGS)
    for side in ("student", "teacher"):
        close(*(tiny.load(folder / side / "model.safetensors") for folder in (fsdp, none)))
    found, expected = (
        [line["student_knn"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if "student_knn" in line]
        for folder in (fsdp, none)
    )
    assert found == expected and len(found) == 3


@pytest.mark.slow
def test_a_sharded_command_exports_what_it_trained(others: Path):
    run = others / "command"
    state = last(run)
    for side, folder in tiny.sides(run).items():
        for name, value in tiny.load(folder / "model.safetensors").items():
            assert torch.equal(value, state[f"{side}.encoder.{name}"])
    assert "probe_student_knn" in (run / "metrics.jsonl").read_text()
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("way", ["none_to_fsdp", "fsdp_to_none", "one_to_fsdp", "fsdp_to_one"])
def test_a_run_goes_on_with_another_sharding_and_number_of_processes(way: str, root: Path):
    close(last(root / way), last(root / "data2vec_none"), within=1e-5 if "one" in way.split("_") else 1e-6)


def test_a_signal_in_a_step_and_in_a_save_stops_all_and_the_run_goes_on_to_the_bit(root: Path):
    for rank in range(2):
        codes = json.loads((root / "stopped" / f"codes_{rank}.json").read_text())
        assert codes == [["00000007", 143], ["00000011", 143]]
    close(last(root / "stopped"), last(root / "data2vec_fsdp"), within=0)


def test_each_process_writes_its_share_and_nothing_is_pickled(root: Path):
    place = checkpoint.checkpoints_in(root / "data2vec_fsdp" / "checkpoints")[-1]
    shares = sorted(place.glob("shard-*.safetensors"))
    sizes = [path.stat().st_size for path in shares]
    assert len(shares) == 2 and min(sizes) > 0.4 * max(sizes)
    assert {path.suffix for path in place.iterdir()} == {".safetensors", ".json", ".pkl"}
    assert [path.name for path in sorted(place.glob("*.pkl"))] == ["random_states_0.pkl", "random_states_1.pkl"]
    assert checkpoint.damage(place) is None


def test_a_damaged_share_is_passed_over(root: Path, tmp_path: Path):
    folder, said = tmp_path / "checkpoints", []
    shutil.copytree(root / "data2vec_fsdp" / "checkpoints", folder)
    share = sorted((folder / "00000020").glob("shard-*"))[1]
    share.write_bytes(share.read_bytes()[:-9])
    loop = tiny.loop_of(tiny.config_of("image", tmp_path, *CASES["data2vec"]))
    assert checkpoint.restore(loop.accelerator, folder, said.append) == folder / "00000010"
    assert len(said) == 1 and f"{share.name} has" in said[0]
    sorted((folder / "00000010").glob("shard-*"))[0].unlink()
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged"):
        checkpoint.restore(loop.accelerator, folder, said.append)


def test_shares_of_another_model_are_no_damage(root: Path, tmp_path: Path):
    loop = tiny.loop_of(tiny.config_of("image", tmp_path, "model.trunk.mlp_dim=32"))
    with pytest.raises(ValueError, match=r"00000020 is of another model \(size mismatch for .*mlp.fc1.*; choose"):
        checkpoint.restore(loop.accelerator, root / "data2vec_fsdp" / "checkpoints", print)


def test_processes_drop_the_same_layers_whatever_else_they_draw(tmp_path: Path):
    drawn = []
    for number in range(3):
        objective = tiny.objective_of(tiny.config_of("image", tmp_path, "model.trunk.layer_drop=0.5", "train.seed=3"))
        torch.manual_seed(number)
        trunk = objective.student["encoder"].trunk
        steps = []
        for step in range(40):
            objective.begin_step(step, 40)
            steps.append([trunk._drops(0) for _ in range(4)])
        drawn.append(steps)
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({tuple(step) for step in drawn[0]}) > 10
    assert 40 < sum(map(sum, drawn[0])) < 120
