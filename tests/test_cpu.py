"""Products by oneDNN, against torch's own: values, gradients, and where they are not taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models import cpu
from d2v.models.transformer import MLP, Attention, linear_map, through

ROWS, WIDTH, OUT = 260, 70, 66  # rows * width * out just above LARGE_PRODUCT


@pytest.fixture(autouse=True)
def on_amd(monkeypatch):
    """The path is taken here too, whatever the processor is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu, "is_amd_with_avx512", lambda: True)


def calls(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN is asked for from here on."""
    asked, ask = [], torch.ops.mkldnn._linear_pointwise

    def note(x: Tensor, *rest) -> Tensor:
        asked.append(tuple(x.shape))
        return ask(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", note)
    return asked


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "out"), [(WIDTH, OUT), (OUT, WIDTH)])
@pytest.mark.parametrize("layout", ["rows", "batch", "transposed", "sliced"])
def test_values_and_gradients_are_those_of_the_plain_product(layout, width, out, bias, monkeypatch):
    asked = calls(monkeypatch)
    x = {
        "rows": torch.randn(ROWS, width),
        "batch": torch.randn(4, ROWS // 4, width),
        "transposed": torch.randn(width, ROWS).T,
        "sliced": torch.randn(2 * ROWS, width + 3)[::2, 1:-2],
    }[layout].requires_grad_()
    weight = (torch.randn(out, width) / width**0.5).requires_grad_()
    inputs = [x, weight, torch.randn(out, requires_grad=True)] if bias else [x, weight]
    found = linear_map(x, weight, inputs[2] if bias else None)
    expected = F.linear(x.double(), weight.double(), inputs[2].double() if bias else None)
    direction = torch.randn_like(found)
    ours = torch.autograd.grad((found * direction).sum(), inputs)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert len(asked) == 3  # forward, by the input, by the weight


def test_gradients_that_are_expanded_are_laid_out_before(monkeypatch):
    """Those of a sum or a mean have strides of 0, of which oneDNN makes a loop that takes minutes."""
    x, weight = torch.randn(4, ROWS // 4, WIDTH, requires_grad=True), torch.randn(OUT, WIDTH, requires_grad=True)
    layouts, ask = [], torch.ops.mkldnn._linear_pointwise

    def note(x: Tensor, weight: Tensor, *rest) -> Tensor:
        layouts.extend([x.stride(), weight.stride()])
        return ask(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", note)
    for _ in range(2):  # the second time by code that is kept, of other numbers
        found = torch.autograd.grad(linear_map(x, weight, None).mean(1).sum(), [x, weight])
        expected = torch.autograd.grad(F.linear(x, weight).mean(1).sum(), [x, weight])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        x = torch.randn_like(x).requires_grad_()
    assert len(layouts) == 12 and all(1 in strides and 0 not in strides for strides in layouts)


def test_an_mlp_and_attention_are_the_same_by_either_library(monkeypatch):
    mlp, attention = MLP(64, 96, 0.0), Attention(64, 4, bias="qv", dropout=0.0)
    torch.nn.init.normal_(attention.q_bias)
    asked = calls(monkeypatch)

    def run() -> list[Tensor]:
        x = torch.linspace(-1, 1, 4 * 70 * 64).view(4, 70, 64).requires_grad_()
        out = mlp(x) + attention(x, None)
        parameters = [x, *mlp.parameters(), *attention.parameters()]
        return [out, *torch.autograd.grad(out.square().sum(), parameters)]

    ours = run()
    number = len(asked)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        theirs = run()
    assert number == len(asked) == 12
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_weights_and_inputs_without_a_gradient_get_none(monkeypatch):
    asked = calls(monkeypatch)
    layer = torch.nn.Linear(WIDTH, OUT)
    layer.weight.requires_grad_(False)
    through(layer, torch.randn(ROWS, WIDTH)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and len(asked) == 1
    with torch.no_grad():
        assert not through(layer, torch.randn(ROWS, WIDTH)).requires_grad


def test_a_bias_of_any_layout_is_read_right():
    layer, x = torch.nn.Linear(WIDTH, OUT), torch.randn(ROWS, WIDTH)
    for bias in (torch.arange(2.0 * OUT)[::2], torch.ones(1).expand(OUT), torch.arange(OUT + 3.0)[3:]):
        torch.testing.assert_close(linear_map(x, layer.weight, bias), F.linear(x, layer.weight, bias))
    with pytest.raises(RuntimeError, match=r"shape|size"):  # torch's own words
        linear_map(x, layer.weight[:, 1:], None)


def test_what_transforms_functions_sees_torchs_own_product(monkeypatch):
    asked = calls(monkeypatch)
    layer, x = torch.nn.Linear(WIDTH, OUT).requires_grad_(False), torch.randn(3, ROWS, WIDTH)
    torch.testing.assert_close(torch.vmap(lambda row: through(layer, row))(x), layer(x))
    _, turned = torch.func.jvp(lambda given: cpu.product(given, layer.weight), (x[0],), (x[1],))
    torch.testing.assert_close(turned, F.linear(x[1], layer.weight))
    assert not asked
    assert not cpu.takes_onednn(x[0], layer.weight.data.to_sparse())


def test_small_products_other_precisions_autocast_and_hooks_keep_the_plain_one(monkeypatch):
    asked = calls(monkeypatch)
    layer, x = torch.nn.Linear(WIDTH, OUT), torch.randn(ROWS, WIDTH)
    through(layer, x[:10])
    through(layer.double(), x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert through(layer, x).dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        through(layer, x)
    heard = []
    handle = layer.register_forward_hook(lambda *call: heard.append(1))
    through(layer, x)
    handle.remove()
    assert not asked and heard == [1]
    through(layer, x)
    assert len(asked) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_and_compiled_code_holds_no_operator_of_onednn(monkeypatch):
    asked = calls(monkeypatch)
    mlp, x = MLP(64, 96, 0.0).eval(), torch.randn(4, 70, 64)
    with torch.no_grad():
        traced = torch.jit.trace(mlp, x, check_trace=False)
        exported = torch.export.export(mlp, (x,))
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    assert compiled(x).shape == x.shape and not asked
    assert "mkldnn" not in str(traced.inlined_graph) + str(exported.graph)
