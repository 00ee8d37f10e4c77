"""Which parameters are decayed, and gradients scaled and clipped in one pass; each optimizer against a slow loop."""

import math

import pytest
import tiny
import torch
from torch import nn

from d2v.config.schema import TrainConfig
from d2v.objectives.common.objective import Objective
from d2v.training.optim import make_optimizer, parameter_groups, scale_and_clip, skip_unless


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.token, self.scale = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.conv = nn.Conv1d(2, 2, 3)


def names(net: Net, group: dict) -> set[str]:
    inside = {id(p) for p in group["params"]}
    return {name for name, p in net.named_parameters() if id(p) in inside}


def test_vectors_are_not_decayed():
    net = Net()
    first, second = parameter_groups(net, 0.05)
    assert names(net, first) == {"linear.weight", "conv.weight"} and first["weight_decay"] == 0.05
    assert (
        names(net, second) == {"linear.bias", "norm.weight", "norm.bias", "token", "scale", "conv.bias"}
        and second["weight_decay"] == 0
    )


def test_everything_trained_is_decayed_if_asked_for():
    net = Net()
    (group,) = parameter_groups(net, 0.05, decay_all=True)
    assert (
        names(net, group) == {name for name, _ in net.named_parameters()} - {"frozen"} and group["weight_decay"] == 0.05
    )


def test_decay_moves_matrices_only():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(net, 0.5), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] * (0.95 if name in ("linear.weight", "conv.weight") else 1.0)
        )


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_scale_and_clip_is_torchs_clipping_of_scaled_gradients(scale, max_norm):
    parameters = [nn.Parameter(torch.zeros(n, 3)) for n in (2, 4)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 30
    parameters.append(nn.Parameter(torch.zeros(2)))  # without a gradient, as of a dropped layer
    slow = [nn.Parameter(torch.zeros_like(p)) for p in parameters]
    for parameter, twin in zip(parameters[:2], slow, strict=False):
        twin.grad = parameter.grad * scale
    expected = torch.nn.utils.clip_grad_norm_(slow, max_norm or float("inf"))
    norm = scale_and_clip(parameters, torch.tensor(scale), max_norm)
    assert float(norm) == pytest.approx(float(expected), rel=1e-6) and parameters[2].grad is None
    for parameter, twin in zip(parameters[:2], slow, strict=False):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_shows_in_the_norm():
    for bad in (float("nan"), float("inf")):
        parameter = nn.Parameter(torch.zeros(3))
        parameter.grad = torch.tensor([1.0, bad, 1.0])
        assert not scale_and_clip([parameter], torch.tensor(0.5), 1.0).isfinite()
    parameter.grad = torch.zeros(3)
    assert scale_and_clip([parameter], torch.tensor(0.5), 1.0) == 0 and parameter.grad.isfinite().all()


@pytest.mark.parametrize("frontends", [True, False])
def test_rates_fall_from_the_head_down_by_layer(frontends):
    """BEiT's fine-tuning: decay ** (depth + 1 - layer); data2vec 2.0's: what is not a block keeps the full rate."""
    net = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"frontends": nn.ModuleDict({"eye": nn.Linear(3, 4)}), "trunk": nn.Module()}),
            "head": nn.Linear(4, 2),
        }
    )
    net["encoder"]["frontends"]["eye"].bias_table = nn.Parameter(torch.zeros(5, 2))
    net["encoder"]["trunk"].blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(11))  # more than ten: 10 is not 1
    net["encoder"]["trunk"].input_norm, net["encoder"]["trunk"].final_norm = nn.LayerNorm(4), nn.LayerNorm(4)
    model = nn.ModuleDict({"model": net})
    scale = {}
    for group in parameter_groups(model, 0.1, layer_decay=0.5, frontends=frontends):
        inside = {id(p) for p in group["params"]}
        for name, p in model.named_parameters():
            if id(p) in inside:
                assert name not in scale and group["weight_decay"] == (0.1 if p.ndim > 1 else 0.0)
                scale[name.removeprefix("model.")] = group["scale"]
    assert scale.keys() == {name for name, _ in net.named_parameters()}
    for name, found in scale.items():
        layer = 12
        if "blocks" in name:
            layer = int(name.split(".")[3]) + 1
        elif frontends and ("frontends" in name or "input_norm" in name) and "bias_table" not in name:
            layer = 0
        assert found == 0.5 ** (12 - layer), name


def test_the_loop_scales_each_groups_rate(tmp_path):
    config = tiny.config_of(
        tiny.MODALITIES[0],
        tmp_path,
        "train.layer_decay=0.5",
        "train.steps=2",
        "train.schedule=constant",
        "train.lr=1e-3",
    )
    loop = tiny.loop_of(config)
    loop()
    rates = sorted({round(group["lr"] / 1e-3, 6) for group in loop.optimizer.param_groups})
    assert rates == [0.125, 0.25, 0.5, 1.0]


def test_each_gradient_is_clipped_by_its_own_norm():
    """DINO's clipping, the slow way: one tensor after another; what is below the limit, or zero, stays."""
    gradients = [torch.randn(4, 3) * 30, torch.randn(3) * 0.01, torch.zeros(2)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = scale_and_clip(parameters, torch.tensor(0.5), 2.0, each=True)
    assert float(norm) == pytest.approx(
        float(torch.cat([gradient.flatten() for gradient in gradients]).norm()) * 0.5, rel=1e-6
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        slow = gradient * 0.5
        slow = slow * min(1.0, 2.0 / max(float(slow.norm()), 1e-12))
        torch.testing.assert_close(parameter.grad, slow, rtol=1e-5, atol=1e-7)
    assert float(parameters[0].grad.norm()) == pytest.approx(2.0, rel=1e-5)


class Steps:
    """An optimizer of a small network, and the same gradients at each number of a step."""

    def __init__(self, optimizer: str, **settings):
        torch.manual_seed(0)
        self.objective = Objective(teacher=False, net=Net())
        self.trained = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(self.objective, TrainConfig(optimizer=optimizer, **settings))

    def gradients(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        return {name: torch.randn(p.shape, generator=generator) for name, p in self.trained.items()}

    def __call__(self, number: int, lr: float, *, bad: bool = False) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for name, gradient in self.gradients(number).items():
            self.trained[name].grad = gradient * float("nan") if bad else gradient
        skip_unless(torch.tensor(not bad), self.optimizer)
        self.optimizer.step()

    def values(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.items()}


def slow_steps(steps: Steps, rates: list[float], trust, weight_decay: float) -> dict[str, torch.Tensor]:
    """Momentum 0.9 on gradients that `trust` scales: matrices by their ratio, vectors neither adapted nor decayed."""
    values, momentum = steps.values(), {}
    for number, lr in enumerate(rates):
        for name, gradient in steps.gradients(number).items():
            p = values[name]
            if p.squeeze().ndim > 1:
                gradient = trust(p, gradient, weight_decay) * (gradient + weight_decay * p)
            momentum[name] = 0.9 * momentum.get(name, 0.0) + gradient
            values[name] = p - lr * momentum[name]
    return values


def published_ratio(p, gradient, weight_decay):
    """MoCo v3's, BYOL's and SimCLR's code (facts/ssl_methods.md 0.5): over the norm of the decayed gradient."""
    return 0.001 * p.norm() / (gradient + weight_decay * p).norm()


def paper_ratio(p, gradient, weight_decay):
    """LARS (arXiv 1708.03888) equation 6: over the sum of both norms."""
    return 0.001 * p.norm() / (gradient.norm() + weight_decay * p.norm())


RATES = [4.8, 2.0, 4.0]


def apart(found: dict, expected: dict) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def test_lars_adapts_matrices_and_leaves_vectors():
    """timm's is the paper's ratio; at the published decays it is also that of the published code."""
    for weight_decay, tolerance in ((0.0, 1e-6), (1e-6, 1e-6), (1.5e-6, 1e-6), (0.5, 1e-6)):
        steps = Steps("lars", weight_decay=weight_decay)
        expected = slow_steps(steps, RATES, paper_ratio, weight_decay)
        published = slow_steps(steps, RATES, published_ratio, weight_decay)
        for number, lr in enumerate(RATES):
            steps(number, lr)
        assert apart(steps.values(), expected) < tolerance
        assert (apart(steps.values(), published) < tolerance) == (weight_decay < 0.1)
    first, second = steps.optimizer.param_groups
    assert first["always_adapt"] and not second["always_adapt"] and second["weight_decay"] == 0


def test_lars_of_zeros_does_not_divide_by_them():
    steps = Steps("lars", weight_decay=1e-6)
    for p in steps.trained.values():
        nn.init.zeros_(p)
    steps(0, 1.0)
    for name, gradient in steps.gradients(0).items():
        torch.testing.assert_close(steps.trained[name].detach(), -gradient)


def test_sgd_is_momentum_with_a_decay_of_matrices():
    steps = Steps("sgd", weight_decay=0.5)
    expected = slow_steps(steps, [0.1, 0.05, 0.2], lambda *_: 1.0, 0.5)
    for number, lr in enumerate([0.1, 0.05, 0.2]):
        steps(number, lr)
    assert apart(steps.values(), expected) < 1e-6
    without = Steps("sgd", weight_decay=0.0, momentum=0.0)
    before = without.values()
    without(0, 0.1)
    for name, gradient in without.gradients(0).items():
        torch.testing.assert_close(without.trained[name].detach(), before[name] - 0.1 * gradient)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_step_that_is_not_finite_never_was(optimizer, bad):
    """The first one too, in which momentum would be left as memory was; LARS neither decays nor follows its own."""
    with_it, without = Steps(optimizer), Steps(optimizer)
    for number in range(4):
        with_it(number, 0.1, bad=number == bad)
        if number != bad:
            without(number, 0.1)
    tiny.assert_same(with_it.values(), without.values())


def test_parts_at_a_constant_rate_and_a_decay_that_rises(tmp_path):
    """In the loop: SimSiam's predictor keeps the peak rate, through warm-up too.

    DINO's weight decay rises by half a cosine, of matrices only.
    """
    more = (
        "train.steps=4",
        "train.warmup_steps=1",
        "train.lr=1e-3",
        "train.weight_decay=0.04",
        "train.end_weight_decay=0.4",
    )
    config = tiny.config_of(tiny.MODALITIES[0], tmp_path, *more)
    objective = tiny.objective_of(config)
    objective.constant_rate = ("predictor",)
    loop = tiny.loop_of(config, objective=objective)
    predictor = {id(p) for p in objective.predictor.parameters()}
    seen, batches = [], loop._batches()
    for step in range(4):
        loop._step(batches)
        decay = 0.04 + 0.36 * (1 - math.cos(math.pi * step / 4)) / 2
        for group in loop.optimizer.param_groups:
            assert group["constant"] == bool(predictor & {id(p) for p in group["params"]})
            assert group["weight_decay"] == pytest.approx(decay if group["decays"] else 0.0)
            if group["constant"]:
                assert group["lr"] == 1e-3
            else:
                seen.append(group["lr"])
    assert len(loop.optimizer.param_groups) == 4 and sorted({round(lr / 1e-3, 4) for lr in seen}) == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_run_by_another_optimizer_resumes_to_the_bit(optimizer, tmp_path):
    """Momentum is saved; two steps and two more are four."""
    more = (
        f"train.optimizer={optimizer}",
        "train.betas=[0.9, 0.98]",
        "train.eps=1e-6",
        "train.schedule=constant",
        "run.save_every=2",
    )
    ends = []
    for name, parts in (("whole", [4]), ("parts", [2, 4])):
        for steps in parts:
            loop = tiny.loop_of(tiny.config_of(tiny.MODALITIES[0], tmp_path / name, *more, f"train.steps={steps}"))
            loop()
        ends.append(dict(loop.objective.state_dict()))
    tiny.assert_same(*ends)
    assert tiny.losses(tmp_path / "whole") == tiny.losses(tmp_path / "parts")


def test_a_frozen_teacher_that_does_not_exist_is_an_error(tmp_path):
    config = tiny.config_of(tiny.MODALITIES[0], tmp_path, "train.update_teacher=false")
    with pytest.raises(ValueError, match=r"train.update_teacher is false, but this method has no teacher"):
        tiny.loop_of(config, objective=Objective(teacher=False, net=Net()))
