"""Batch norm over groups against torch's own, one module per group.

tests/test_joint_distributed.py has it over processes.
"""

import pytest
import torch
from torch import nn

from d2v.models.batch_norm import GroupedBatchNorm, group_batch_norms


def pair(channels: int, kind: type = nn.BatchNorm1d, **settings) -> tuple[nn.Module, nn.Module]:
    """A plain norm and ours, with the same weights."""
    plain = kind(channels, eps=1e-3, momentum=0.3)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = GroupedBatchNorm(channels, eps=1e-3, momentum=0.3, **settings)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def both(x: torch.Tensor, function, module: nn.Module) -> list[torch.Tensor]:
    """Output, and gradients of something that is not symmetric in the rows, by the input and the weights."""
    x = x.clone().requires_grad_()
    out = function(x)
    weight = torch.linspace(-1, 2, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.square() * weight).sum(), [x, *module.parameters()])]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (8, 3)), (nn.BatchNorm2d, (6, 3, 4, 5))])
def test_one_group_is_torchs_batch_norm(kind, shape):
    plain, ours = pair(3, kind)
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        assert_close(both(x, ours, ours), both(x, plain, plain))
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)
    assert_close(both(x, ours.eval(), ours), both(x, plain.eval(), plain))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("shape", [(8, 3), (16, 3), (8, 3, 4, 5)])
def test_groups_are_a_loop_over_norms_of_their_own(groups, shape):
    """Row i is of group i mod G; the running statistics are the mean of those that the groups would have."""
    plain, ours = pair(3, nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d, groups=groups)
    alone = [pair(3, type(plain))[0] for _ in range(groups)]
    for norm in alone:
        norm.load_state_dict(plain.state_dict())

    def loop(x):
        out = torch.empty_like(x)
        for number in range(groups):
            part = nn.functional.batch_norm(
                x[number::groups], None, None, plain.weight, plain.bias, True, 0.0, plain.eps
            )
            out = out.index_copy(0, torch.arange(number, len(x), groups), part)
        return out

    for seed in range(2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        for number, norm in enumerate(alone):
            norm.load_state_dict({**plain.state_dict(), **dict(ours.named_buffers())})
            norm(x[number::groups])
        assert_close(both(x, ours, ours), both(x, loop, plain))
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                ours.get_buffer(name), torch.stack([norm.get_buffer(name) for norm in alone]).mean(dim=0)
            )
        assert ours.num_batches_tracked == seed + 1 and ours.num_batches_tracked.dtype == torch.int64
    ours.eval()
    expected = nn.functional.batch_norm(
        x, ours.running_mean, ours.running_var, ours.weight, ours.bias, False, 0.0, ours.eps
    )
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_half_precision_in_and_out_but_float32_statistics(groups):
    norm = GroupedBatchNorm(3, groups=groups)
    x = (torch.randn(64, 3) * 2 + 100).bfloat16()
    out = norm(x)
    assert out.dtype == torch.bfloat16 and norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    of_groups = x.float().unflatten(0, (-1, groups))  # (n, G, C)
    torch.testing.assert_close(norm.running_mean, 0.1 * of_groups.mean(dim=(0, 1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * of_groups.var(dim=0).mean(dim=0), rtol=1e-4, atol=1e-4)
    expected = (of_groups - of_groups.mean(dim=0)) / of_groups.var(dim=0, unbiased=False).add(norm.eps).sqrt()
    torch.testing.assert_close(out.float(), expected.flatten(0, 1), rtol=1e-2, atol=1e-2)


def test_groups_that_rows_do_not_fill_are_an_error():
    with pytest.raises(
        ValueError, match=r"6 rows of 1 processes cannot be split into 4 equal groups.*objective.norm_groups"
    ):
        GroupedBatchNorm(3, groups=4)(torch.randn(6, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GroupedBatchNorm(3, groups=4)(torch.randn(4, 3))


def test_every_batch_norm_of_a_network_is_replaced_and_computes_the_same():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.Sequential(nn.BatchNorm2d(4, eps=1e-3), nn.ReLU()),
        nn.BatchNorm2d(4, affine=False, momentum=0.2),
    )
    x = torch.randn(6, 2, 5, 5)
    net(x)  # so that there are running statistics to be kept
    names = net.state_dict().keys()
    before, out = {name: value.clone() for name, value in net.state_dict().items()}, net(x)
    net.load_state_dict(before)
    assert group_batch_norms(net, 1) is net and net.state_dict().keys() == names
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [GroupedBatchNorm] * 2
    assert [(norm.eps, norm.momentum, norm.affine) for norm in norms] == [(1e-3, 0.1, True), (1e-5, 0.2, False)]
    torch.testing.assert_close(net(x), out)
    made = norms[0]
    group_batch_norms(net, 1)
    assert net[1][0] is made  # a second time nothing changes


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.SyncBatchNorm(4), "norm is a SyncBatchNorm; only plain batch norms"),
        (nn.BatchNorm2d(4, track_running_stats=False), "norm is a batch norm without running statistics"),
        (
            nn.BatchNorm2d(4, momentum=None),
            "norm is a batch norm without running statistics, or with those of a whole run",
        ),
    ],
)
def test_batch_norms_that_cannot_be_grouped_are_named(norm, message):
    with pytest.raises(ValueError, match=message):
        group_batch_norms(nn.ModuleDict({"norm": norm}), 1)
