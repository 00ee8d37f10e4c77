"""Decoders, the convolution they share with speech's positions, and ALiBi, against slow loops."""

import pytest
import torch
from torch import Tensor, nn

from d2v.models.alibi import Alibi, slopes
from d2v.models.cpu import LONG_KERNEL
from d2v.models.decoder import Decoder, DecoderConfig
from d2v.models.token_conv import convolve
from d2v.models.transformer import Trunk, TrunkConfig
from d2v.types import Mask


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [5, LONG_KERNEL, LONG_KERNEL + 3])
@pytest.mark.parametrize(("in_dim", "dim", "groups"), [(8, 12, 2), (6, 6, 1)])
def test_convolution_of_tokens_is_that_of_channels_first_with_its_gradients(in_dim, dim, groups, kernel):
    conv = nn.Conv1d(in_dim, dim, kernel, padding=kernel // 2, groups=groups)
    grads = []
    for run in (lambda x: convolve(conv, x), lambda x: conv(x.transpose(1, 2)).transpose(1, 2)):
        x = torch.linspace(-1, 1, 2 * 23 * in_dim).sin().view(2, 23, in_dim).requires_grad_()
        y = run(x)
        grads.append([y, *torch.autograd.grad(y.square().sum(), (x, *conv.parameters()))])
    for found, expected in zip(*grads, strict=True):
        close(found, expected)


def normed(values: Tensor) -> Tensor:
    return torch.nn.functional.gelu((values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt())


def slow_layer(layer, x: Tensor, side: int) -> Tensor:
    """One row (T, C_in), tap by tap and group by group.

    Zeros beyond the edge; an even kernel reaches one further back.
    """
    weight, bias = layer.conv.weight, layer.conv.bias
    out_dim, per_group = weight.shape[:2]
    groups, kernel = x.shape[1] // per_group, weight.shape[-1]
    places = [(0, t) for t in range(len(x))] if side == 1 else [divmod(t, side) for t in range(len(x))]
    at = {place: x[t] for t, place in enumerate(places)}
    out = []
    for row, column in places:
        value = bias.clone()
        for down in range(kernel) if side > 1 else [kernel // 2]:
            for right in range(kernel):
                token = at.get((row + down - kernel // 2, column + right - kernel // 2))
                if token is None:
                    continue
                taps = weight[:, :, down, right] if side > 1 else weight[:, :, right]
                for group in range(groups):
                    outer = slice(group * out_dim // groups, (group + 1) * out_dim // groups)
                    value[outer] += taps[outer] @ token[group * per_group : (group + 1) * per_group]
        out.append(normed(value))
    return torch.stack(out)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("dims", "kernel", "groups", "head_layers"), [(1, 5, 2, 1), (1, 4, 1, 2), (2, 3, 4, 1), (2, 2, 2, 3)]
)
@torch.no_grad()
def test_decoder_is_the_slow_loop(dims, kernel, groups, head_layers, residual):
    dim, tokens, kept = 8, 9, 4
    config = DecoderConfig(
        dims,
        dim=8 if residual else 12,
        depth=3,
        kernel=kernel,
        groups=groups,
        residual=residual,
        head_layers=head_layers,
        noise=0.0,
    )
    decoder = Decoder(dim, config)
    keep = torch.stack([torch.randperm(tokens)[:kept] for _ in range(3)])
    hidden = torch.ones(3, tokens, dtype=torch.bool).scatter(1, keep, False)
    hidden[0, (~hidden[0]).nonzero()[0]] = False
    x, padding = torch.randn(3, kept, dim), None
    if dims == 1:
        padding = torch.arange(tokens) >= torch.tensor([9, 7, 8])[:, None]
        hidden &= ~padding
    found = iter(decoder(x, Mask(hidden, keep), padding))
    for n in range(3):
        row = torch.zeros(tokens, dim)
        for k in range(kept):
            row[keep[n, k]] = x[n, k]
        for layer in decoder.layers:
            if padding is not None:
                row[padding[n]] = 0
            y = slow_layer(layer, row, 1 if dims == 1 else 3)
            row = row + y if residual and row.shape == y.shape else y
        for t in hidden[n].nonzero()[:, 0]:
            value = row[t]
            for number in range(head_layers):
                linear = decoder.head[2 * number]
                value = linear.weight @ value + linear.bias
                value = value if number == head_layers - 1 else torch.nn.functional.gelu(value)
            close(next(found), value)
    assert next(found, None) is None


def test_noise_stands_in_hidden_places_only_and_is_fresh():
    decoder = Decoder(8, DecoderConfig(dim=8, groups=2, noise=0.5))
    keep, x = torch.tensor([[4, 1, 7]]).expand(200, -1), torch.randn(200, 3, 8)
    first, second = (decoder.places(x, keep, 10) for _ in range(2))
    assert torch.equal(first[:, [4, 1, 7]], x)
    noise = first[:, [0, 2, 3, 5, 6, 8, 9]]
    assert abs(float(noise.std()) - 0.5) < 0.02 and abs(float(noise.mean())) < 0.02
    assert not torch.equal(first, second)


def test_decoder_settings_are_checked():
    with pytest.raises(ValueError, match="12 tokens are no square grid"):
        Decoder(8, DecoderConfig(2, dim=8, groups=2)).places(
            torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long), 12
        )
    with pytest.raises(ValueError, match=r"decoder.groups is 16; it must divide the trunk's width, 40"):
        Decoder(40, DecoderConfig())
    for wrong, message in (
        ({"dims": 3}, "at least 1 and at most 2"),
        ({"groups": 5}, "a divisor"),
        ({"noise": -1.0}, "0 or more"),
        ({"head_ratio": 0.0}, r"head_ratio is 0.0; it must be at least"),
        ({"head_init": "x"}, "may be default, trunk"),
    ):
        with pytest.raises(ValueError, match=message):
            DecoderConfig(**wrong)


@pytest.mark.parametrize(
    ("settings", "dim", "expected"),
    [  # the published models' decoders
        ({"dims": 2, "dim": 768, "depth": 6, "kernel": 3, "groups": 16}, 768, 2_585_856),
        ({"dims": 2, "dim": 1024, "depth": 3, "kernel": 5, "groups": 16}, 1024, 5_967_872),
        ({"dim": 384, "depth": 4, "kernel": 7, "groups": 16}, 768, 619_776),
        ({"dim": 768, "depth": 4, "kernel": 7, "groups": 16}, 1024, 1_908_736),
        ({"dim": 768, "depth": 5, "kernel": 9, "groups": 1, "head_layers": 2}, 768, 28_907_520),
    ],
)
def test_decoder_sizes_of_the_published_models(settings, dim, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(dim, DecoderConfig(**settings)).parameters()) == expected


# ALiBi.


def test_slopes_of_the_published_heads():
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(16) == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])
    tail = [0.70710678, 0.35355339, 0.1767767, 0.08838835]
    assert slopes(12) == pytest.approx([*(2.0**-n for n in range(1, 9)), *tail])
    assert Alibi(12, per_head=True, num_layers=1, learned=True)(torch.arange(4)[None])[0, 0, 1].tolist() == [
        -0.5,
        0,
        -0.5,
        -1,
    ]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_alibi_is_the_slow_loop_with_clamped_scales(num_layers, per_head):
    alibi = Alibi(4, per_head=per_head, num_layers=num_layers, learned=True)
    with torch.no_grad():
        alibi.scale.copy_(torch.randn_like(alibi.scale))
        alibi.scale[0] = -1.0
    positions = torch.tensor([[0, 5, 2], [7, 1, 3]])
    bias = alibi(positions).detach()
    assert bias.shape == ((3,) if num_layers == 3 else ()) + (2, 4, 3, 3)
    scale = alibi.scale.detach().view(num_layers, -1).expand(num_layers, 4)
    for layer, part in enumerate(bias if num_layers == 3 else [bias]):
        for n in range(2):
            for head in range(4):
                for i in range(3):
                    for j in range(3):
                        wanted = (
                            -slopes(4)[head]
                            * max(0.0, float(scale[layer, head]))
                            * abs(int(positions[n, i]) - int(positions[n, j]))
                        )
                        assert float(part[n, head, i, j]) == pytest.approx(wanted, abs=1e-6)


@torch.no_grad()
def test_blocks_may_have_biases_of_their_own():
    trunk = Trunk(TrunkConfig(depth=3, dim=8, num_heads=2, mlp_dim=16)).eval()
    x, bias = torch.randn(2, 5, 8), torch.randn(3, 2, 2, 5, 5)
    expected = trunk.input_norm(x)
    for block, part in zip(trunk.blocks, bias, strict=True):
        expected, _ = block(expected, part)
    close(trunk(x, bias)[0], expected)
    with pytest.raises(ValueError, match="gives 2 attention biases; the trunk has 3 blocks"):
        trunk(x, bias[:2])
