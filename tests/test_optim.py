"""Which parameters are decayed, and gradients scaled and clipped in one pass."""

import pytest
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
