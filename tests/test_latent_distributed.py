"""Two gloo processes are one for methods that predict latents: losses, gradients and state, codebooks included."""

from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from d2v.objectives.common.objective import Objective

CASES = [
    ("image", "dinosr", ()),
    ("image", "spidr", ()),
    ("image", "ijepa", ()),
    ("speech", "ijepa", ("data.min_context=3",)),
    ("speech", "wav2vec2", ()),
    ("image", "capi", ()),
    ("speech", "capi", ()),
    ("speech", "data2vec", ("objective.layer_norms=[batch]",)),
    ("image", "data2vec2", ("objective.targets=layers", "objective.visible_weight=0.1", "objective.loss_scale=mean")),
]
STEPS = 2


def made(number: int, prepared: Path) -> tuple[Objective, object]:
    """An objective of weights that are apart from its teacher's, and its batches, of clips of unequal lengths."""
    modality, name, more = CASES[number]
    unpacked = ("data.pack_seconds=0",) if modality == "speech" else ()
    config = tiny.config_of(modality, "unused", tiny.using(name), *unpacked, *more)
    objective = tiny.objective_of(config, prepared / modality)
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return objective.train(), tiny.batches_of(config, prepared / modality)


def trained(number: int, prepared: Path, rank: int = 0, world: int = 1) -> dict:
    """Steps as the loop takes them, by plain gradient descent: what each left."""
    objective, batches = made(number, prepared)
    objective.check_batch(4, world)
    trained = {key: p for key, p in objective.named_parameters() if p.requires_grad}
    found = {"losses": [], "gradients": []}
    for step in range(STEPS):
        objective.begin_step(step, STEPS)
        loss = objective(batches(step, rank, world)[0])
        loss.total.backward()
        sums = torch.stack([loss.total.detach(), loss.count.float()])
        for value in (sums, *(p.grad for p in trained.values())):
            if world > 1:
                dist.all_reduce(value)
        objective.adjust_gradients(step, STEPS)
        gradients = {key: p.grad / sums[1] for key, p in trained.items()}
        with torch.no_grad():
            for key, parameter in trained.items():
                parameter -= 0.01 * gradients[key]
        objective.zero_grad()
        if len(objective.teacher):
            objective.update_teacher(objective.ema_decay(step + 1, STEPS))
        found["losses"].append(float(sums[0] / sums[1]))
        found["gradients"].append(gradients)
    return {**found, "state": objective.state_dict()}


def two_processes(root: Path) -> None:
    for number in range(len(CASES)):
        found = trained(number, root, dist.get_rank(), 2)
        if dist.get_rank() == 0:
            torch.save(found, root / f"{number}.pt")
    dist.destroy_process_group()


def joined(root: Path) -> None:
    """What one of two processes does."""
    dist.init_process_group("gloo")
    two_processes(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("latent")
    processes = tiny.start(joined, root, world=2)
    assert tiny.wait(processes) == [0, 0]
    return root


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case[:2]) for case in CASES])
def test_two_processes_are_one(number, root):
    expected, found = trained(number, root), torch.load(root / f"{number}.pt", weights_only=True)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    for step, gradients in enumerate(expected["gradients"]):
        for key, value in gradients.items():
            close(found["gradients"][step][key], value, f"gradient of {key} in step {step}")
    assert found["state"].keys() == expected["state"].keys()
    for key, value in expected["state"].items():
        close(found["state"][key], value, key)


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """To 1e-6 of the largest entry, and of 1."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * scale, msg=lambda text: f"{what}: {text}")
