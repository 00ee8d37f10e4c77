"""Which parameters are decayed, and gradients scaled and clipped in one pass."""

import pytest
import tiny
import torch
from torch import nn

from d2v.optim import parameter_groups, scale_and_clip


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
    assert names(net, second) == {"linear.bias", "norm.weight", "norm.bias", "token", "scale", "conv.bias"} and second["weight_decay"] == 0


def test_everything_trained_is_decayed_if_asked_for():
    net = Net()
    (group,) = parameter_groups(net, 0.05, decay_all=True)
    assert names(net, group) == {name for name, _ in net.named_parameters()} - {"frozen"} and group["weight_decay"] == 0.05


def test_decay_moves_matrices_only():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(net, 0.5), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in ("linear.weight", "conv.weight") else 1.0))


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
        {"encoder": nn.ModuleDict({"frontends": nn.ModuleDict({"eye": nn.Linear(3, 4)}), "trunk": nn.Module()}), "head": nn.Linear(4, 2)}
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
    config = tiny.config_of(tiny.MODALITIES[0], tmp_path, "train.layer_decay=0.5", "train.steps=2", "train.schedule=constant", "train.lr=1e-3")
    loop = tiny.loop_of(config)
    loop()
    rates = sorted({round(group["lr"] / 1e-3, 6) for group in loop.optimizer.param_groups})
    assert rates == [0.125, 0.25, 0.5, 1.0]
