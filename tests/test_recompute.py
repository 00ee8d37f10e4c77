"""What is computed again in the backward pass and not kept: gradients are the plain ones, and the memory is free."""

import weakref

import pytest
import several
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.cpu import DroppedProduct, draw_kept
from d2v.models.transformer import MLP, Attention, Trunk, TrunkConfig, attend_with_dropout, gelu_linear


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    direction = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad((out * direction).sum(), inputs)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.gelu(x), weight, bias)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (3, 7, 6), (7, 7)])
def test_a_linear_layer_of_gelu_has_the_plain_gradients(shape, transposed):
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    given = x.transpose(-2, -1) if transposed else x
    weight = torch.randn(4, given.shape[-1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    found, expected = gelu_linear(given, weight, bias), plain(given, weight, bias)
    torch.testing.assert_close(found, expected)
    inputs = [x, weight, bias]
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(gelu_linear, (given.detach().requires_grad_(), weight, bias))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_dropout_has_the_plain_gradients(transposed):
    weights, v = torch.rand(2, 3, 5, 5, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    if transposed:
        weights, v = weights.transpose(-2, -1), v.transpose(1, 2).contiguous().transpose(1, 2)
    weights.requires_grad_()
    v.requires_grad_()
    torch.manual_seed(2)
    found = DroppedProduct.apply(weights, v, 0.3)
    torch.manual_seed(2)
    share = round(0.3 * 65536)
    expected = (weights * draw_kept(weights.shape, share) / (1 - share / 65536)) @ v
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, [weights, v]), gradients(expected, [weights, v]), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_that_are_not_trained_get_no_gradient():
    mlp, x = MLP(6, 8, 0.0), torch.randn(3, 6)
    mlp.fc2.weight.requires_grad_(False)
    mlp(x).sum().backward()
    assert mlp.fc2.weight.grad is None and mlp.fc2.bias.grad is not None and mlp.fc1.weight.grad is not None


def test_under_autocast_it_is_the_plain_one_in_bf16():
    mlp, x = MLP(6, 8, 0.0), torch.randn(2, 5, 6, requires_grad=True)
    inputs = [x, *mlp.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = mlp(x), mlp.fc2(F.gelu(mlp.fc1(x)))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        attention = Attention(8, 2, bias="qkv", dropout=0.4).train()
        out = attention(torch.randn(2, 5, 8, requires_grad=True), None)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and attention.qkv.weight.grad.isfinite().all()


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_blocks_that_are_computed_again_keep_nothing_of_the_forward_pass(pre_norm, attention_dropout):
    config = TrunkConfig(
        depth=4, dim=8, num_heads=2, mlp_dim=16, pre_norm=pre_norm, attention_dropout=attention_dropout
    )
    trunk = Trunk(config).train()
    trunk.gradient_checkpointing = True
    made: list[weakref.ref] = []
    for block in trunk.blocks:
        for layer in (block.mlp, block.mlp.fc1, block.attention):
            layer.register_forward_hook(lambda module, inputs, output: made.append(weakref.ref(output)))
    out, _ = trunk(torch.randn(2, 5, 8, requires_grad=True))
    assert len(made) == 12 and not [one for one in made if one() is not None]
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())


def kept_numbers(function, *inputs: Tensor) -> int:
    """Numbers that autograd keeps of one call, but for its inputs."""
    places, sizes = {x.untyped_storage().data_ptr() for x in inputs}, {}

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in places and x.dtype != torch.bool:
            sizes[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = function(*inputs)
    assert out.requires_grad
    return sum(sizes.values())


def test_neither_the_gelu_nor_the_dropped_weights_are_kept():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((9, 6), (4, 6), (4,)))
    assert kept_numbers(gelu_linear, x, weight, bias) == 0 and kept_numbers(plain, x, weight, bias) == 9 * 6
    weights, v = torch.rand(2, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 5, 4, requires_grad=True)
    assert kept_numbers(lambda weights, v: DroppedProduct.apply(weights, v, 0.3), weights, v) == 0
    assert kept_numbers(lambda weights, v: F.dropout(weights, 0.3) @ v, weights, v) >= 2 * 3 * 5 * 5


def test_compiled_it_is_one_graph():
    mlp, x = MLP(6, 8, 0.0), torch.randn(2, 5, 6, requires_grad=True)
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    inputs = [x, *mlp.parameters()]
    for one, other in zip(gradients(compiled(x), inputs), gradients(mlp(x), inputs), strict=True):
        torch.testing.assert_close(one, other)
    q = torch.randn(2, 2, 5, 4, requires_grad=True)
    attend = torch.compile(attend_with_dropout, backend="eager", fullgraph=True)
    assert torch.autograd.grad(attend(q, q, q, None, 0.2).sum(), q)[0].isfinite().all()


@torch.no_grad()
def test_compiled_a_trunk_is_one_graph_for_each_modality():
    trunk = several.trained(several.encoder(**several.OWN)).trunk
    compiled, x = torch.compile(trunk, backend="eager", fullgraph=True), torch.randn(2, 5, 16)
    for modality in ("image", "speech", "text"):
        torch.testing.assert_close(compiled(x, modality=modality)[0], trunk(x, modality=modality)[0])


@pytest.mark.parametrize("share", [1, 3277, 32768, 65535])
def test_entries_are_dropped_at_their_rate_and_unlike_each_other(share):
    torch.manual_seed(5)
    kept = draw_kept(torch.Size((7, 300, 301)), share)  # a size that four does not divide
    rate = share / 65536
    error = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert kept.shape == (7, 300, 301) and abs((~kept).double().mean().item() - rate) < 4 * error
    flat = (~kept).flatten().double()
    for step in (1, 2, 3, 4, 301):  # neighbours, which may be of one word
        both = (flat[step:] * flat[:-step]).mean().item()
        assert abs(both - rate**2) < 5 * (rate**2 * (1 - rate**2) / kept.numel()) ** 0.5 + 1e-6
