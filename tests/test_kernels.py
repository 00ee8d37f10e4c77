"""What attention runs by is said, and its bias is never a large tensor in float32 under autocast."""

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from d2v.models.transformer import attention_bias
from d2v.training.kernels import attention_line

SETTINGS = {
    "image": ("model.frontends.image.relative_bias=true",),
    "speech": ("model.frontends.speech.alibi=head",),
    "text": ("model.frontends.text.alibi=head",),
}


class Largest(TorchDispatchMode):
    """The sizes of float32 results that hold a number for each of T x T pairs of tokens of several rows or heads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[torch.dtype, set] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            square = isinstance(x, torch.Tensor) and x.ndim >= 4 and x.shape[-1] == x.shape[-2]
            if square and x.is_floating_point() and x.shape[-1] > 4:
                self.found.setdefault(x.dtype, set()).add((str(func), *x.shape))
        return out


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_under_autocast_no_bias_is_in_float32(modality, tmp_path):
    config = tiny.config_of(modality, tmp_path, tiny.using("data2vec2"), *SETTINGS[modality])
    objective = tiny.objective_of(config).train()
    views, _ = tiny.batches_of(config)(0, 0, 1)
    frontend, keep = objective.student["encoder"].frontend(modality), views[0].mask.keep
    padding = torch.arange(keep.shape[1]) > keep.shape[1] - 2
    for kept in (None, keep):
        tokens = views[0].mask.hidden.shape[1]
        with torch.autocast("cpu", torch.bfloat16), Largest() as largest:
            bias = frontend.bias(tokens, kept)
            if kept is not None and modality != "image":
                bias = attention_bias(padding.expand(len(keep), -1), bias)
        assert bias.dtype == torch.bfloat16 and bias.requires_grad
        assert torch.float32 not in largest.found, largest.found
        exact = frontend.bias(tokens, kept)
        assert exact.dtype == torch.float32
        there = bias.isfinite()
        torch.testing.assert_close(bias[there].float(), exact.expand_as(bias)[there], rtol=0.02, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(views).total
    assert float(loss.detach()) == pytest.approx(float(objective(views).total.detach()), rel=0.05)


def test_the_line_names_bias_precision_and_kernel(tmp_path):
    cpu = torch.device("cpu")
    for modality, said in (("image", "additive bias"), ("speech", "additive bias"), ("text", "additive bias")):
        config = tiny.config_of(modality, tmp_path, tiny.using("data2vec2"), *SETTINGS[modality])
        line = attention_line(tiny.objective_of(config).student["encoder"], cpu, "bf16")
        assert line == f"attention in bfloat16 of {modality}: {said}, flash attention"
    config = tiny.config_of("text", tmp_path, "model.trunk.attention_dropout=0.1")
    line = attention_line(tiny.objective_of(config).student["encoder"], cpu, "no")
    assert line == "attention in float32 of text: no bias, plain products with dropout"
