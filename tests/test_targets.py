"""Targets against slow loops over samples, tokens and channels."""

import pytest
import torch
from torch import Tensor

from d2v.objectives.common.regression import NORMS, mean_of_layers

PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 2 + [True] * 4])


def standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()


def slow(name: str, x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, T, D); what is padded is left as it is."""
    out = x.clone()
    real = torch.ones(x.shape[:2], dtype=torch.bool) if padding is None else ~padding
    if name == "layer":
        for b, t in real.nonzero().tolist():
            out[b, t] = standard(x[b, t])
    elif name == "instance":
        for b in range(len(x)):
            for d in range(x.shape[2]):
                out[b, real[b], d] = standard(x[b, real[b], d])
    elif name == "group":
        for b in range(len(x)):
            out[b, real[b]] = standard(x[b, real[b]])
    else:
        for d in range(x.shape[2]):
            out[..., d][real] = standard(x[..., d][real])
    return out


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, padding):
    x = torch.randn(3, 6, 4) * 3 + 5
    found, real = NORMS[name](x, padding), torch.ones(3, 6).bool() if padding is None else ~padding
    torch.testing.assert_close(found[real], slow(name, x, padding)[real], rtol=1e-4, atol=1e-5)
    if padding is not None:  # what lies in padding does not count
        other = x.clone()
        other[padding] = 1e3
        torch.testing.assert_close(NORMS[name](other, padding)[real], found[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("each", "final"),
    [([], []), (["instance"], []), (["layer"], ["layer"]), (["batch", "instance"], ["layer", "instance"])],
)
def test_mean_of_layers(each, final, padding):
    layers = [torch.randn(3, 6, 4) * 2 + n for n in range(3)]
    normed = []
    for layer in layers:
        for name in each:
            layer = slow(name, layer, padding)
        normed.append(layer)
    expected = sum(normed) / 3
    for name in final:
        expected = slow(name, expected, padding)
    real = torch.ones(3, 6).bool() if padding is None else ~padding
    torch.testing.assert_close(mean_of_layers(layers, each, final, padding)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_half_precision_layers_give_float32_targets():
    layers = [torch.randn(2, 5, 4).bfloat16() * 100 for _ in range(4)]
    target = mean_of_layers(layers, ["instance"], ["layer"])
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, mean_of_layers([layer.float() for layer in layers], ["instance"], ["layer"]))
    constant = mean_of_layers([torch.full((2, 5, 4), 3.0)], ["instance"], [])
    assert not constant.any()  # a collapsed teacher gives zeros, not nan
