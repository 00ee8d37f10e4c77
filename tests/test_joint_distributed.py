"""Two processes compute what one does.

Gathering, batch norm over groups, and steps of the methods that compare views; bf16 in the loop.
"""

import os
from pathlib import Path

import pytest
import small
import test_joint_methods as methods
import tiny
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2v.config.schema import RunConfig, TrainConfig
from d2v.models.batch_norm import GroupedBatchNorm
from d2v.objectives.common.objective import Objective
from d2v.training import distributed as dist
from d2v.training.loop import Loop

METHODS = [*methods.MODULES]
IN_BF16 = ["byol", "clustering"]  # with and without batch norm, teacher and gathering with gradient
NORMS = [
    (groups, shape, kind)
    for groups in (1, 4)
    for shape in ((16, 3), (16, 3, 2, 2))
    for kind in (torch.float32, torch.bfloat16)
]


def share(rank: int, world: int) -> slice:
    """The rows of the global batch that fall to a process."""
    return slice(rank, None, world)


def norm_of(groups: int, shape: tuple, kind: torch.dtype, rank: int, world: int) -> dict[str, Tensor]:
    """Outputs and gradients of this process's rows, and summed gradients of the weights.

    Beside them the running statistics after two batches.
    """
    torch.manual_seed(2)
    norm = GroupedBatchNorm(shape[1], groups=groups, momentum=0.3)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for _ in range(2):
        x = (torch.randn(shape) * 2 + 5).to(kind)[share(rank, world)].requires_grad_()
        weight = torch.linspace(-1, 2, shape[0] * x[0].numel()).view(shape)[share(rank, world)]
        out = norm(x)
        gradients = torch.autograd.grad((out.float().square() * weight).sum(), [x, *norm.parameters()])
    summed = [dist.all_sum(gradient) for gradient in gradients[1:]]
    whole = [dist.gather(value) for value in (out, gradients[0])]
    return {"out": whole[0], "x": whole[1], "weight": summed[0], "bias": summed[1], **dict(norm.named_buffers())}


def gathered(rank: int, world: int) -> dict[str, Tensor]:
    """A function of all rows, which every process computes, and its gradient by this process's rows.

    Beside them the rows' places.
    """
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    x = rows[share(rank, world)].clone().requires_grad_()
    everything = dist.gather_with_gradient(x)
    total = (everything @ everything.T).tril().sum() * len(x) / len(rows)  # of these rows: their share
    by_sum = dist.sum_with_gradient(x.sum(dim=0)).pow(3).sum() * len(x) / len(rows)
    by_mean = dist.mean_with_gradient(x.exp().mean(dim=0)).pow(3).sum() * len(x) / len(rows)
    gradients = [torch.autograd.grad(value, x)[0] for value in (total, by_sum, by_mean)]
    places = dist.mine(len(x), x.device)
    assert (
        not dist.gather(x).requires_grad
        and torch.equal(everything[places], x)
        and torch.equal(places, torch.arange(6)[share(rank, world)])
    )
    values = {"rows": everything.detach(), "total": dist.all_sum(total.detach()), "sum": dist.all_sum(by_sum.detach())}
    values["mean"] = dist.all_sum(by_mean.detach())
    return values | {f"gradient{i}": dist.gather(gradient) for i, gradient in enumerate(gradients)}


def stepped(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Losses and gradients of two steps on batches of eight, as the loop takes them.

    Beside them everything an objective then keeps.
    """
    objective = methods.objective(name)
    model = DistributedDataParallel(objective) if world > 1 else objective
    # a larger step would magnify the first one's rounding
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.02)
    found = {}
    for step in range(2):
        views = [small.rows(small.view(seed=10 * step + number), share(rank, world)) for number in range(2)]
        loss = model(views)
        loss.total.backward()
        total, count = dist.all_sum(torch.stack([loss.total.detach(), loss.count.float()]))
        found[f"loss.{step}"] = total / count
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= world / count
                found[f"gradient.{step}.{key}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        objective.update_teacher(0.9)
    return found | {key: value.clone() for key, value in objective.state_dict().items()}


class Pairs:
    """Batches of two views of noise."""

    def __call__(self, step: int, part: int, parts: int):
        views = [small.rows(small.view(seed=10 * step + number), share(part, parts)) for number in range(2)]
        return views, [str(number) for number in views[0].indices.tolist()]


def in_bf16(name: str, folder: Path) -> Objective:
    """An objective after two steps of the loop itself, under accelerate's autocast."""
    train = TrainConfig(steps=2, batch_size=8, lr=1e-2, optimizer="lars", mixed_precision="bf16")
    folder.mkdir(exist_ok=True)
    objective = methods.objective(name)
    Loop(
        objective,
        Pairs(),
        train=train,
        run=RunConfig(dir=str(folder), log_every=1),
        accelerator=Accelerator(mixed_precision="bf16"),
    )()
    return objective


def everything(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    found = {f"norm {case}": norm_of(*case, rank, world) for case in NORMS} | {"gathered": gathered(rank, world)}
    return found | {name: stepped(name, rank, world) for name in METHODS}


def two_processes(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    torch.save(everything(rank, 2), folder / f"two_{rank}.pt")
    for name in IN_BF16:
        torch.save(in_bf16(name, folder / f"bf16_{name}").state_dict(), folder / f"bf16_{name}_{rank}.pt")
    torch.distributed.destroy_process_group()


def one_process(folder: Path) -> None:
    """A process of its own: accelerate keeps one precision for as long as a process lives."""
    for name in IN_BF16:
        torch.save(in_bf16(name, folder / f"alone_{name}").state_dict(), folder / f"alone_{name}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What three processes leave."""
    folder = tmp_path_factory.mktemp("joint")
    two, one = tiny.start(two_processes, folder, world=2), tiny.start(one_process, folder)
    assert tiny.wait(two) == [0, 0] and tiny.wait(one) == [0]
    return folder


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Tensor]]:
    """What one process computes, by what it is of."""
    return everything(0, 1)


@pytest.fixture(scope="module")
def two(folder) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes has."""
    return [torch.load(folder / f"two_{rank}.pt") for rank in range(2)]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_gathering_gives_values_and_gradients_of_one_process(one, two):
    for found in two:
        assert_close(found["gathered"], one["gathered"], rtol=1e-5, atol=1e-5)
    assert torch.equal(one["gathered"]["rows"], torch.randn(6, 3, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_batch_norm_over_processes(case, one, two):
    expected, coarse = one[f"norm {case}"], case[2] == torch.bfloat16
    statistics = {name: value for name, value in expected.items() if name.startswith(("running", "num"))}
    for found in (values[f"norm {case}"] for values in two):
        assert_close({name: found[name] for name in statistics}, statistics, rtol=1e-4, atol=1e-4)
        assert_close(found, expected, rtol=0.05 if coarse else 1e-4, atol=0.1 if coarse else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_steps_of_two_processes_are_those_of_one(name, one, two):
    assert any(key.startswith("gradient.0.student") and value.abs().max() > 0.1 for key, value in one[name].items())
    for found in two:
        assert_close(found[name], one[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", IN_BF16)
def test_bf16_trains_float32_weights_by_float32_losses(name, folder):
    start = methods.objective(name).state_dict()
    ends = [torch.load(folder / f"{place}.pt") for place in (f"alone_{name}", f"bf16_{name}_0", f"bf16_{name}_1")]
    tiny.assert_same(ends[2], ends[1])  # both processes hold the same
    for end in ends:
        assert {value.dtype for value in end.values() if value.is_floating_point()} == {torch.float32}
        assert all(value.isfinite().all() for value in end.values())
        assert any(
            not torch.equal(value, start[key]) for key, value in end.items() if key.startswith("student.encoder")
        )
    assert_close(ends[1], ends[0], rtol=0.05, atol=0.05)
    alone, two = (tiny.losses(folder / f"{place}_{name}") for place in ("alone", "bf16"))
    assert two == pytest.approx(alone, rel=0.05, abs=0.05)
