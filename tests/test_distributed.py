"""Two processes are one: the same losses and weights with half the batch each, an exact resume, and reductions that say what they should."""

import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from tiny import MODALITIES, OBJECTIVES

from d2v import dist
from d2v.monitors import channel_std

PADDED = ("data.pack_seconds=0",)  # clips of unequal length, where a modality has packing


def variants(modality: str) -> dict[str, tuple[str, ...]]:
    """Names and overrides of the runs that must not depend on the number of processes."""
    config = tiny.config_of(modality, "unused")
    found: dict[str, tuple[str, ...]] = {"plain": ()}
    if "pack_seconds" in vars(config.data):
        found["padded"] = (*PADDED, "train.steps=6")
    if modality == MODALITIES[0]:
        found["accumulated"] = ("train.accumulate=2", "train.steps=6")
    for objective in (name for name in OBJECTIVES if name != config.objective.name):
        found[objective] = (tiny.using(objective), *(PADDED if "padded" in found else ()), "train.steps=6")
    return found


def prepare(modality: str, variant: str, root: Path) -> Path:
    return root / f"prepared_{modality}_{variant}"


def two_processes(root: Path, resume: bool) -> None:
    """What each of two processes does: the runs of every modality, and one with dropout, which the second pair of processes resumes."""
    for modality in MODALITIES:
        if not resume:
            for name, more in variants(modality).items():
                run(modality, root / f"two_{modality}_{name}", prepare(modality, name, root), more)
        run(modality, root / f"dropout_{modality}", prepare(modality, "plain", root), (*tiny.DROPOUT, "train.steps=8", "run.save_every=4"))
    if not resume:
        check_reductions()
    torch.distributed.destroy_process_group()


def run(modality: str, folder: Path, prepared: Path, more: tuple[str, ...]) -> None:
    config = tiny.config_of(modality, folder, *more)
    loop = tiny.loop_of(config, prepared=prepared)
    loop()
    if loop.accelerator.is_main_process:
        torch.save(loop.objective.state_dict(), folder / "end.pt")


def check_reductions() -> None:
    """In each of two processes, against what one would compute of both halves."""
    rank = int(os.environ["RANK"])
    halves = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 8)]
    assert dist.world_size() == 2
    mine = torch.tensor(1.0 + rank)
    assert dist.all_sum(mine) == 3 and mine == 1 + rank and dist.all_mean(mine) == 1.5
    assert dist.first_error("of one" if rank else None) == "of one" and dist.first_error(None) is None
    # the metrics of different processes may be in different orders
    metrics = {"b": torch.tensor(float(rank)), "a": torch.tensor(2.0)} if rank else {"a": torch.tensor(0.0), "b": torch.tensor(float(rank))}
    assert {name: float(value) for name, value in dist.mean_of_metrics(metrics).items()} == {"a": 1.0, "b": 0.5}
    torch.testing.assert_close(channel_std(halves[rank]), (torch.cat(halves).var(dim=0) + 1e-6).sqrt().mean())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs by one process, here, and by two at the same time."""
    root = tmp_path_factory.mktemp("distributed")
    for modality in MODALITIES:
        for name, more in variants(modality).items():  # two processes must find the same tokenizer
            tiny.samples_of(tiny.config_of(modality, root, *more), prepare(modality, name, root))
    processes = tiny.start(two_processes, root, False, world=2)
    for modality in MODALITIES:
        for name, more in variants(modality).items():
            run(modality, root / f"one_{modality}_{name}", prepare(modality, name, root), more)
    assert tiny.wait(processes) == [0, 0]
    return root


CASES = [(modality, name) for modality in MODALITIES for name in variants(modality)]


@pytest.mark.parametrize(("modality", "variant"), CASES)
def test_two_processes_follow_one(modality, variant, root):
    one, two = (root / f"{number}_{modality}_{variant}" for number in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4)
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (one, two))
    assert len(tiny.losses(one)) == (20 if variant == "plain" else 6)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4, msg=name)


def test_two_processes_resume_exactly(root):
    """With dropout, which differs between processes: each must get its own random state back."""
    whole = {}
    for modality in MODALITIES:
        folder = root / f"dropout_{modality}"
        whole[modality] = tiny.checkpoint_tensors(folder, 8), tiny.losses(folder)
        shutil.rmtree(folder / "checkpoints" / "00000008")
    assert tiny.wait(tiny.start(two_processes, root, True, world=2)) == [0, 0]
    for modality, (tensors, losses) in whole.items():
        tiny.assert_same(tiny.checkpoint_tensors(root / f"dropout_{modality}", 8), tensors)
        assert tiny.losses(root / f"dropout_{modality}") == losses
        states = [
            torch.load(path, weights_only=False) for path in sorted((root / f"dropout_{modality}").glob("checkpoints/00000008/random_states_*"))
        ]
        assert len(states) == 2 and not torch.equal(*(state["torch_manual_seed"] for state in states))


def test_alone_every_reduction_is_the_value_itself():
    value = torch.tensor(2.0)
    assert dist.world_size() == 1 and dist.all_sum(value) == dist.all_mean(value) == 2 and dist.first_error("e") == "e"
    assert dist.mean_of_metrics({}) == {} and dist.mean_of_metrics({"a": value}) == {"a": value}
