"""Two processes are one.

The same losses and weights with half the batch each, an exact resume after a kill, and honest reductions.
"""

import os
import signal
from pathlib import Path

import pytest
import tiny
import torch
from tiny import MODALITIES, OBJECTIVES

from d2v.objectives.common.regression import channel_std, spread_of
from d2v.training import distributed as dist
from d2v.training.collapse import normalised_std
from d2v.training.run_log import Meter

# batch norms over four samples magnify rounding, and AdamW makes any gradient, however small, a step of the same size
SGD = ("train.optimizer=sgd", "train.lr=0.002", "train.betas=[0.9,0.98]", "train.eps=1e-6")
PADDED = ("data.pack_seconds=0",)  # clips of unequal length, where a modality has packing


# whose two processes other fast tests hold against one, step by step: test_contrastive, test_dino,
# test_joint_distributed, test_latent_distributed and test_two_views
ELSEWHERE = {"moco", "mochi", "instdisc", "simclr", "dino", "ibot", "swav", "byol", "simsiam", "mocov3", "clustering"}
ELSEWHERE |= {"dinosr", "spidr", "ijepa", "wav2vec2", "capi", "barlow", "vicreg", "lejepa", "visreg", "simdino", "wmse"}

AGAIN = [(modality, "data2vec2") for modality in MODALITIES[:-1]]  # with every modality, of which one is enough


def variants(modality: str) -> dict[str, tuple[str, ...]]:
    """Names and overrides of the runs that must not depend on the number of processes."""
    config = tiny.config_of(modality, "unused")
    found: dict[str, tuple[str, ...]] = {"plain": ()}
    if "pack_seconds" in vars(config.data):
        found["padded"] = (*PADDED, "train.steps=6")
    if modality == MODALITIES[0]:
        found["accumulated"] = ("train.accumulate=2", "train.steps=6")
    others = [name for m, name in tiny.PAIRS if m == modality and name != config.objective.name]
    for objective in (name for name in others if tiny.in_turn(modality, name)):
        few = (*SGD, "train.steps=3") if tiny.compares_views(objective) else ("train.steps=6",)
        found[objective] = (tiny.using(objective), *(PADDED if "padded" in found else ()), *few)
    return found


def prepare(modality: str, variant: str, root: Path) -> Path:
    return root / f"prepared_{modality}_{variant}"


def two_processes(root: Path, cases: list[tuple[str, str]]) -> None:
    """What each of two processes does: the runs."""
    for modality, name in cases:
        run(modality, root / f"two_{modality}_{name}", prepare(modality, name, root), variants(modality)[name])
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
    metrics = (
        {"b": torch.tensor(float(rank)), "a": torch.tensor(2.0)}
        if rank
        else {"a": torch.tensor(0.0), "b": torch.tensor(float(rank))}
    )
    assert {name: float(value) for name, value in dist.mean_of_metrics(metrics).items()} == {"a": 1.0, "b": 0.5}
    for shift in (0.0, 1000.0):  # the means of processes differ by little of what they are
        expected = ((torch.cat(halves) + shift).var(dim=0) + 1e-6).sqrt().mean()
        torch.testing.assert_close(tiny.known(channel_std(halves[rank] + shift)), expected, rtol=1e-4, atol=0)
        expected = normalised_std(torch.cat(halves) + shift)
        torch.testing.assert_close(tiny.known(spread_of(halves[rank] + shift)), expected, rtol=1e-4, atol=1e-6)
    assert float(tiny.known(spread_of(halves[rank][:rank]))) == 0  # one row in all
    meter = Meter(Path("bad.jsonl"), 1)
    meter.add_micro(
        {"of one": torch.tensor(float("nan") if rank else 2.0), "of none": torch.tensor(float("nan"))}, [], 0.0
    )
    assert meter._means() == {"of one": 2.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory, request) -> Path:
    """Runs of the cases that were chosen by one process, here, and by two at the same time."""
    root = tmp_path_factory.mktemp("distributed")
    chosen = {item.callspec.id for item in request.session.items if "two_processes_follow_one[" in item.name}
    cases = [case for case in CASES if "-".join(case) in chosen]
    for modality, name in cases:  # two processes must find the same tokenizer
        tiny.samples_of(tiny.config_of(modality, root, *variants(modality)[name]), prepare(modality, name, root))
    processes = tiny.start(two_processes, root, cases, world=2)
    for modality, name in cases:
        run(modality, root / f"one_{modality}_{name}", prepare(modality, name, root), variants(modality)[name])
    assert tiny.wait(processes) == [0, 0]
    return root


CASES = [(modality, name) for modality in MODALITIES for name in variants(modality)]


@pytest.mark.parametrize(
    ("modality", "variant"),
    [pytest.param(*case, marks=pytest.mark.slow if case[1] in ELSEWHERE or case in AGAIN else ()) for case in CASES],
)
def test_two_processes_follow_one(modality, variant, root):
    one, two = (root / f"{number}_{modality}_{variant}" for number in ("one", "two"))
    # a mean of cosines is near 0 at first: its digits are those of 1
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4, abs=2e-6)
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (one, two))
    assert len(tiny.losses(one)) == (
        20 if variant == "plain" else 3 if variant in OBJECTIVES and tiny.compares_views(variant) else 6
    )
    for name, value in expected.items():
        scale = (
            max(1.0, float(value.abs().max())) if value.numel() else 1.0
        )  # a float32 of thousands has no digit at 1e-4
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("modality", "objective"),
    [
        (MODALITIES[0], "moco"),
        *(pytest.param(modality, "data2vec", marks=pytest.mark.slow) for modality in MODALITIES),
    ],
)
def test_two_killed_processes_go_on_as_if_nothing_had_been(modality, objective, tmp_path):
    """20 steps at once, and 13 of which 10 were saved, SIGKILL, then the rest.

    With dropout, which differs between processes, and with a queue.
    """
    more = tiny.using(objective), *tiny.DROPOUT
    whole, killed = (
        {"folder": tmp_path / name, "line": tiny.arguments(modality, tmp_path / name, *more)}
        for name in ("whole", "killed")
    )
    dying, running = (
        tiny.start(tiny.run_until_killed, killed["line"], 13, world=2),
        tiny.start(tiny.run, whole["line"], world=2),
    )
    assert -signal.SIGKILL in tiny.wait(dying)  # the other one may find its partner gone before its own end
    assert tiny.wait(running) == [0, 0]
    assert [path.name for path in (killed["folder"] / "checkpoints").glob("[0-9]*")] == ["00000010"]
    assert tiny.wait(tiny.start(tiny.run, killed["line"], world=2)) == [0, 0]
    tiny.assert_same(tiny.checkpoint_tensors(killed["folder"], 20), tiny.checkpoint_tensors(whole["folder"], 20))
    assert tiny.losses(killed["folder"]) == tiny.losses(whole["folder"])
    assert sorted(tiny.losses(whole["folder"])) == list(range(1, 21))
    states = [
        torch.load(path, weights_only=False)
        for path in sorted(whole["folder"].glob("checkpoints/00000020/random_states_*"))
    ]
    assert len(states) == 2 and not torch.equal(*(state["torch_manual_seed"] for state in states))


def test_alone_every_reduction_is_the_value_itself():
    value = torch.tensor(2.0)
    assert dist.world_size() == 1 and dist.all_sum(value) == dist.all_mean(value) == 2 and dist.first_error("e") == "e"
    assert dist.mean_with_gradient(value) == 2
    assert dist.mean_of_metrics({}) == {} and dist.mean_of_metrics({"a": value}) == {"a": value}
