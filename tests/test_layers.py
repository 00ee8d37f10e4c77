"""The trunk against slow loops and written-out blocks; its random parts and its initialisation."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import MODALITIES
from torch import Tensor

from d2v import plugins
from d2v.models.configuration import D2vConfig
from d2v.models.cpu import draw_kept
from d2v.models.encoder import D2vModel
from d2v.models.transformer import (
    Attention,
    DropPath,
    PostNormBlock,
    PreNormBlock,
    Trunk,
    TrunkConfig,
    attend_with_dropout,
    attention_bias,
)
from d2v.types import numbers_of

SMALL = {"depth": 3, "dim": 8, "num_heads": 2, "mlp_dim": 16}


def perturb(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + 0.1)
    return module


def slow_attention(layer: Attention, x: Tensor, bias: Tensor | None) -> Tensor:
    """One row, head and query after another."""
    rows, tokens, dim = x.shape
    width = dim // layer.num_heads
    weight = layer.qkv.weight.view(3, layer.num_heads, width, dim)
    if layer.bias == "qkv":
        offset = layer.qkv.bias.view(3, layer.num_heads, width)
    elif layer.bias == "qv":
        offset = torch.stack([layer.q_bias, torch.zeros(dim), layer.v_bias]).view(3, layer.num_heads, width)
    else:
        offset = torch.zeros(3, layer.num_heads, width)
    outputs = []
    for n in range(rows):
        heads = []
        for h in range(layer.num_heads):
            q, k, v = (x[n] @ weight[i, h].T + offset[i, h] for i in range(3))
            out = []
            for t in range(tokens):
                logits = torch.stack([(q[t] * k[s]).sum() / math.sqrt(width) for s in range(tokens)])
                if bias is not None:
                    table = bias.expand(rows, layer.num_heads, tokens, tokens)[n, h, t]
                    logits = torch.where(table, logits, -math.inf) if bias.dtype == torch.bool else logits + table
                out.append((logits.softmax(0)[:, None] * v).sum(0))
            heads.append(torch.stack(out))
        outputs.append(torch.cat(heads, dim=1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(outputs)


PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


@pytest.mark.parametrize("bias", ["qkv", "qv", "none"])
@pytest.mark.parametrize("given", ["nothing", "padding", "table", "both", "table of each row"])
def test_attention_is_the_slow_one(bias, given):
    layer = perturb(Attention(8, 2, bias=bias, dropout=0.3)).eval()
    x, table = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 5)
    table = torch.randn(2, 2, 5, 5) if given == "table of each row" else table
    mask = attention_bias(
        PADDING if given in ("padding", "both") else None, table if given not in ("nothing", "padding") else None
    )
    found, expected = layer(x, mask), slow_attention(layer, x, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(found)
    weights = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((out * direction).sum(), weights) for out in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if given in ("padding", "both"):
        other = x.detach().clone()
        other[1, 3:] = 99.0
        torch.testing.assert_close(layer(other, mask)[1, :3], found[1, :3])


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def written_out(block, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    def mlp(y: Tensor) -> Tensor:
        y = y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        return y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias

    if isinstance(block, PostNormBlock):
        x = norm(x + slow_attention(block.attention, x, bias), block.norm1)
        return norm(x + mlp(x), block.norm2), mlp(x)
    one, two = (1.0, 1.0) if block.scale1 is None else (block.scale1, block.scale2)
    x = x + one * slow_attention(block.attention, norm(x, block.norm1), bias)
    ffn = two * mlp(norm(x, block.norm2))
    return x + ffn, ffn


@pytest.mark.parametrize(
    "fields",
    [{}, {"pre_norm": True}, {"pre_norm": True, "layer_scale": 0.1, "qkv_bias": "qv", "norm_eps": 1e-6}],
    ids=["post", "pre", "scaled"],
)
def test_blocks_are_the_written_out_ones(fields):
    config = TrunkConfig(**SMALL, **fields)
    block = perturb((PreNormBlock if config.pre_norm else PostNormBlock)(config, 0.5)).eval()
    x, bias = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 4, 4)
    for which in (0, 1):
        found, expected = block(x, bias)[which], written_out(block, x, bias)[which]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        direction, weights = torch.randn_like(found), [x, *block.parameters()]
        ours, theirs = (
            torch.autograd.grad((out * direction).sum(), weights, allow_unused=True) for out in (found, expected)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_are_ffn_outputs_or_ends_of_blocks_from_first_on(pre_norm):
    trunk = perturb(Trunk(TrunkConfig(**SMALL, pre_norm=pre_norm, input_norm=not pre_norm, final_norm=pre_norm))).eval()
    x = torch.randn(2, 4, 8)
    out, none = trunk(x)
    assert none == []
    ends, ffns, y = [], [], trunk.input_norm(x)
    for block in trunk.blocks:
        y, ffn = written_out(block, y, None)
        ends.append(y)
        ffns.append(ffn)
    torch.testing.assert_close(out, norm(y, trunk.final_norm) if pre_norm else y, rtol=1e-5, atol=1e-5)
    for kind, expected in (("ffn", ffns), ("block", ends)):
        for first in range(4):
            same, found = trunk(x, layers=kind, first=first)
            assert torch.equal(same, out) and len(found) == 3 - first
            for a, b in zip(found, expected[first:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_tokens_that_are_wanted_alone_are_those_of_all(pre_norm, recompute):
    """Drop path and layer drop on: which rows and layers they drop must not depend on the tokens asked for."""
    trunk = perturb(
        Trunk(TrunkConfig(**SMALL, pre_norm=pre_norm, final_norm=pre_norm, drop_path=0.4, layer_drop=0.3))
    ).train()
    trunk.gradient_checkpointing = recompute
    x, only = torch.randn(3, 5, 8, requires_grad=True), torch.rand(3, 5) < 0.4
    for seed in range(8):  # the last layer is dropped in some of them
        torch.manual_seed(seed)
        whole, layers = trunk(x, layers="ffn", first=1)
        torch.manual_seed(seed)
        part, taken = trunk(x, layers="ffn", first=1, only=numbers_of(only))
        assert part.shape == (int(only.sum()), 8) and len(taken) == len(layers)
        for a, b in zip([part, *taken], [whole, *layers], strict=True):
            torch.testing.assert_close(a, b[only], rtol=1e-5, atol=1e-5)
        gradients = [
            torch.autograd.grad(out.square().sum(), [x, *trunk.parameters()], allow_unused=True)
            for out in (part, whole[only])
        ]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4) if a is not None and b is not None else None
            assert (a is None) == (b is None)


@pytest.mark.parametrize("kind", ["nothing", "padding", "table"])
def test_attention_dropout_drops_weights_and_scales_the_others(kind):
    q, k, v = (torch.randn(2, 2, 4, 3, requires_grad=True) for _ in range(3))
    bias = {"nothing": None, "padding": attention_bias(PADDING[:, 1:], None), "table": torch.randn(2, 4, 4)}[kind]
    torch.manual_seed(4)
    found = attend_with_dropout(q, k, v, bias, 0.4)
    torch.manual_seed(4)
    share = round(0.4 * 65536)
    kept = draw_kept(torch.Size((2, 2, 4, 4)), share)
    logits = q @ k.transpose(-2, -1) / math.sqrt(3)
    if bias is not None:
        logits = torch.where(bias, logits, -math.inf) if bias.dtype == torch.bool else logits + bias
    expected = (logits.softmax(-1) * kept / (1 - share / 65536)) @ v
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((out * direction).sum(), (q, k, v)) for out in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_drop_path_keeps_the_mean_and_drops_whole_rows():
    drop, x = DropPath(0.3), torch.ones(20000, 2, 3)
    out = drop(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    drop.eval()
    assert drop(x) is x and DropPath(0.0)(x) is x


def test_drop_path_grows_linearly_with_depth():
    rates = [block.drop_path.rate for block in Trunk(TrunkConfig(**{**SMALL, "depth": 5}, drop_path=0.2)).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert Trunk(TrunkConfig(**{**SMALL, "depth": 1}, drop_path=0.2)).blocks[0].drop_path.rate == 0


def test_dropped_layers_are_skipped_and_give_no_result():
    trunk = perturb(Trunk(TrunkConfig(**{**SMALL, "depth": 6}, layer_drop=0.5, input_norm=False))).train()
    x, counts = torch.randn(1, 3, 8), []
    for _ in range(60):
        state = torch.get_rng_state()
        out, results = trunk(x, layers="block")
        torch.set_rng_state(state)
        kept = [block for block in trunk.blocks if not torch.rand(()) < 0.5]
        expected = x
        for block in kept:
            expected, _ = block(expected, None)
        assert torch.equal(out, expected) and len(results) == len(kept)
        counts.append(len(kept))
    assert sum(counts) / 60 == pytest.approx(3, abs=0.6)
    assert len(trunk.eval()(x, layers="block")[1]) == 6


def test_recomputed_blocks_give_the_same_gradients_with_dropout():
    trunk = perturb(Trunk(TrunkConfig(**SMALL, dropout=0.2, attention_dropout=0.1, layer_drop=0.2))).train()
    x, gradients = torch.randn(2, 4, 8), []
    for recompute in (False, True):
        trunk.gradient_checkpointing = recompute
        torch.manual_seed(3)
        out, _ = trunk(x)
        gradients.append(torch.autograd.grad(out.square().sum(), [p for p in trunk.parameters()], allow_unused=True))
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_normal_init():
    trunk = Trunk(TrunkConfig(depth=2, dim=128, num_heads=2, mlp_dim=256, init_std=0.05, final_norm=True))
    trunk.init_weights()
    for name, parameter in trunk.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(
                parameter, torch.full_like(parameter, float("norm" in name and name.endswith("weight")))
            ), name
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.05) and parameter.abs().max() > 0.15


def test_depth_scaled_init_is_cut_at_one_std_and_divided_by_the_root_of_twice_the_layer():
    trunk = Trunk(
        TrunkConfig(
            depth=3,
            dim=64,
            num_heads=2,
            mlp_dim=128,
            pre_norm=True,
            layer_scale=0.3,
            qkv_bias="qv",
            init="depth_scaled",
        )
    )
    trunk.init_weights()
    for number, block in enumerate(trunk.blocks, start=1):
        for linear, scaled in (
            (block.attention.qkv, 1),
            (block.mlp.fc1, 1),
            (block.attention.proj, 2 * number),
            (block.mlp.fc2, 2 * number),
        ):
            bound = 0.02 / scaled**0.5
            assert 0.98 * bound < linear.weight.abs().max() <= bound * (1 + 1e-6)
            assert linear.weight.std().item() == pytest.approx(
                0.54 * bound, rel=0.03
            )  # of a normal cut at one deviation
            assert linear.bias is None or not linear.bias.any()
        assert (block.scale1 == 0.3).all() and (block.scale2 == 0.3).all()
        assert not block.attention.q_bias.any() and not block.attention.v_bias.any()


@pytest.mark.parametrize("init", ["normal", "depth_scaled"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_initialisation_forgets_no_parameter(modality, init, tmp_path):
    """Every weight is NaN first, as memory that nobody has filled may be."""
    config = tiny.config_of(modality, tmp_path)
    tiny.samples_of(config)
    fields = {"pre_norm": True, "layer_scale": 0.1, "qkv_bias": "qv", "final_norm": True, "input_norm": True}
    trunk = TrunkConfig(
        depth=2, dim=32, num_heads=2, mlp_dim=64, init=init, **(fields if init == "depth_scaled" else {})
    )
    frontend = plugins.load("d2v.modalities", modality).Frontend(config.frontend, 32, 2)
    for module in (Trunk(trunk), frontend):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        module.init_weights()
        assert not [name for name, parameter in module.named_parameters() if not parameter.isfinite().all()]
    with torch.device("meta"):
        model = D2vModel(D2vConfig(frontends={modality: config.frontend}, trunk=trunk))
    parts = ((f"frontends.{modality}", frontend), ("trunk", Trunk(trunk)))
    assert {name for name, _ in model.named_parameters()} == {
        f"{part}.{name}" for part, module in parts for name, _ in module.named_parameters()
    }


def test_gelu_of_the_mlp_is_the_exact_one():
    block = perturb(PostNormBlock(TrunkConfig(**SMALL), 0.0)).eval()
    x = torch.randn(3, 8)
    torch.testing.assert_close(block.mlp(x), block.mlp.fc2(F.gelu(block.mlp.fc1(x), approximate="none")))
