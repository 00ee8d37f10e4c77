"""The Transformer trunk: attention with an optional additive bias, MLP, post-norm and pre-norm blocks, drop path and
layer drop.

N rows, T tokens, D width, H heads. The blocks of the published models (data2vec 1.0, arXiv 2202.03555, and its code):
speech and text are post-norm, images are pre-norm with layer scale and no key bias.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from d2v.models import cpu
from d2v.models.own import Own, give_own, own_layers
from d2v.models.trunk_config import TrunkConfig


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `layer` is a `kind` and nothing waits for its call, so that its weights may be used in place of it.

    An adapter (LoRA) takes a layer's place, a hook listens to it, offloaded weights bring a forward of their own.
    """
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is kind and not any(hooks) and "forward" not in layer.__dict__


def linear_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, on a CPU by the faster library."""
    return cpu.Linear.apply(x, weight, bias) if cpu.takes_onednn(x, weight, bias) else F.linear(x, weight, bias)


def through(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x), (..., I) -> (..., O)."""
    return linear_map(x, layer.weight, layer.bias) if is_plain(layer, nn.Linear) else layer(x)


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, dim: int, num_heads: int, *, bias: str, dropout: float):
        super().__init__()
        self.num_heads, self.dropout, self.bias = num_heads, dropout, bias
        self.eager = False  # True: by plain operators, see D2vPreTrainedModel
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias == "qkv")
        if bias == "qv":  # a key bias moves all logits of a query alike: softmax does not see it
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(N, T, D), additive bias or boolean mask (True may attend) that broadcasts to (N, H, T, T) -> (N, T, D)."""
        q, k, v = self._heads(x)
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if self.eager:
            out = F.dropout(attention_weights(q, k, bias), dropout).to(v.dtype) @ v
        else:
            attend = attend_with_dropout if dropout and x.device.type == "cpu" else F.scaled_dot_product_attention
            out = attend(q, k, v, bias, dropout)
        return through(self.proj, out.transpose(1, 2).reshape(x.shape))

    def weights(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What each token of each head attends to, (N, H, T, T), rows of sum 1: what `forward` computes inside a
        kernel."""
        q, k, _ = self._heads(x)
        return attention_weights(q, k, bias)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (N, H, T, D / H) each."""
        N, T, D = x.shape  # noqa: N806
        if self.bias != "qv":
            qkv = through(self.qkv, x)  # (N, T, 3D)
        else:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            if is_plain(self.qkv, nn.Linear):
                qkv = linear_map(x, self.qkv.weight, bias)
            else:
                qkv = self.qkv(x)
                qkv = qkv + bias.to(qkv.dtype)
        return qkv.view(N, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)


def attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attention on a CPU, which has no kernel with dropout.

    Arguments and result are `scaled_dot_product_attention`'s.
    """
    return cpu.DroppedProduct.apply(attention_weights(q, k, bias), v, dropout)


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax of the scaled products of queries and keys (N, H, T, D / H) plus the bias, or where the mask is True:
    (N, H, T, T)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(-1)


class _GeluLinear(torch.autograd.Function):
    """linear(gelu(x)); the GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(..., I), (O, I), (O,) -> (..., O) in the weight's precision."""
        ctx.save_for_backward(x, weight)
        return cpu.product(F.gelu(x).to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """By x, the weight and the bias, each where it is asked for."""
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (n, O)
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = torch.ops.aten.gelu_backward(cpu.product(gradient, weight.T).to(x.dtype), x)
        if ctx.needs_input_grad[1]:
            by_weight = cpu.product_of_rows(rows, F.gelu(x).to(weight.dtype).flatten(0, -2))
        if ctx.needs_input_grad[2]:
            by_bias = rows.sum(dim=0)
        return by_x, by_weight, by_bias


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear(F.gelu(x), weight, bias)`, (..., I) -> (..., O), under autocast too.

    Without a gradient it is just that.
    """
    if not torch.is_grad_enabled():
        return cpu.product(F.gelu(x), weight, bias)
    if torch.is_autocast_enabled(x.device.type):  # an autograd.Function casts nothing in its backward pass
        precision = torch.get_autocast_dtype(x.device.type)
        weight, bias = weight.to(precision), bias.to(precision)
    return _GeluLinear.apply(x, weight, bias)


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = through(self.fc1, x)
        if (self.training and self.dropout.p) or not is_plain(self.fc2, nn.Linear):
            return self.fc2(self.dropout(F.gelu(x)))
        return gelu_linear(x, self.fc2.weight, self.fc2.bias)


class DropPath(nn.Module):
    """Zeroes a residual branch for whole samples, and scales the others up.

    (timm's takes a second to import, for this one line.)
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, num_rows: int = 0, row: Tensor | None = None) -> Tensor:
        """(N, ...) -> (N, ...), or (n, D) -> (n, D) if x holds single tokens, of the rows `row` (n,) of `num_rows`."""
        if not self.training or self.rate == 0:
            return x
        rows = len(x) if row is None else num_rows
        keep = x.new_empty((rows,) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate).div_(1 - self.rate)
        return x * (keep if row is None else keep.index_select(0, row))


class PostNormBlock(nn.Module):
    """Norm after each residual sum (speech, text)."""

    def __init__(self, config: TrunkConfig, drop_path: float):
        super().__init__()
        self.attention = Attention(config.dim, config.num_heads, bias=config.qkv_bias, dropout=config.attention_dropout)
        self.norm1 = nn.LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, config.activation_dropout)
        self.norm2 = nn.LayerNorm(config.dim, config.norm_eps)
        self.dropout, self.drop_path = nn.Dropout(config.dropout), DropPath(drop_path)

    def forward(
        self, x: Tensor, bias: Tensor | None, only: Tensor | None = None, modality: str = ""
    ) -> tuple[Tensor, Tensor]:
        """(N, T, D) -> the block's end, and the FFN output before dropout and residual; of the tokens `only` (n,),
        (n, D)."""
        rows = _rows(x, only)
        x = _taken(x + self.drop_path(self.dropout(self.attention(x, bias))), only)
        x = _of(self.norm1, modality)(x)
        ffn = _of(self.mlp, modality)(x)
        return _of(self.norm2, modality)(x + self.drop_path(self.dropout(ffn), *rows)), ffn


class PreNormBlock(nn.Module):
    """Norm before attention and MLP, each output scaled per channel (images)."""

    def __init__(self, config: TrunkConfig, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.num_heads, bias=config.qkv_bias, dropout=config.attention_dropout)
        self.norm2 = nn.LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, config.activation_dropout)
        scale = torch.full((config.dim,), config.layer_scale)
        self.scale1 = nn.Parameter(scale.clone()) if config.layer_scale else None
        self.scale2 = nn.Parameter(scale.clone()) if config.layer_scale else None
        self.dropout, self.drop_path = nn.Dropout(config.dropout), DropPath(drop_path)

    def forward(
        self, x: Tensor, bias: Tensor | None, only: Tensor | None = None, modality: str = ""
    ) -> tuple[Tensor, Tensor]:
        """(N, T, D) -> the block's end, and the scaled FFN output before the residual; of the tokens `only` (n,),
        (n, D)."""
        rows = _rows(x, only)
        attended = self.dropout(self.attention(_of(self.norm1, modality)(x), bias))
        x = _taken(x + self.drop_path(_scaled(attended, self.scale1)), only)
        ffn = self.dropout(_of(self.mlp, modality)(_of(self.norm2, modality)(x)))
        ffn = self.drop_path(_scaled(ffn, self.scale2), *rows)
        return x + ffn, ffn


def _of(layer: nn.Module, modality: str) -> nn.Module:
    """The layer, or a modality's own."""
    return layer[modality] if isinstance(layer, Own) else layer


def taken(x: Tensor, at: Tensor) -> Tensor:
    """(N, T, ...) -> (n, ...), the tokens of the numbers `at` (n,), row * T + place."""
    return x.flatten(0, 1).index_select(0, at)


def _taken(x: Tensor, only: Tensor | None) -> Tensor:
    return x if only is None else taken(x, only)


def _rows(x: Tensor, only: Tensor | None) -> tuple[int, Tensor | None]:
    """How many rows (N, T, D) has, and in which the tokens `only` (n,) lie."""
    return len(x), None if only is None else only // x.shape[1]


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class Trunk(nn.Module):
    """The stack of blocks, shared by all modalities, but for what each has for itself."""

    def __init__(self, config: TrunkConfig, modalities: Sequence[str] = ()):
        """ValueError: something that each modality has for itself, where there are not several."""
        super().__init__()
        config.check_modalities(modalities)
        self.config = config
        self.gradient_checkpointing = False
        # Which layers drop; None: torch's generator of the CPU. A run sets it, the same on all of its processes.
        self.layer_draws: np.random.Generator | None = None
        self.input_norm = nn.LayerNorm(config.dim, config.norm_eps) if config.input_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout if config.input_dropout is None else config.input_dropout)
        prenet_drop = config.layer_drop if config.prenet_layer_drop is None else config.prenet_layer_drop
        self.layer_drops = [
            prenet_drop if number < config.prenet_depth else config.layer_drop for number in range(config.depth)
        ]
        make = PreNormBlock if config.pre_norm else PostNormBlock
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(make(config, rate) for rate in rates)
        self.final_norm = nn.LayerNorm(config.dim, config.norm_eps) if config.final_norm else nn.Identity()
        if config.own_norms:
            give_own(self, ("input_norm", "final_norm"), modalities)
        for number, block in enumerate(self.blocks, start=1):
            if config.own_norms:
                give_own(block, ("norm1", "norm2"), modalities)
            if 0 < config.own_ffn_from <= number:
                give_own(block, ("mlp",), modalities)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        layers: str = "none",
        first: int = 0,
        only: Tensor | None = None,
        modality: str = "",
    ) -> tuple[Tensor, list[Tensor]]:
        """(N, T, D) -> the output and, per block from number `first` on, what `layers` names: "ffn", "block" or "none".
        A dropped layer gives none.

        `bias`: as in attention_bias; with one more dimension in front, each block has its own. ValueError: more or
        fewer than blocks.
        `only` (n,): numbers row * T + place of the tokens that are wanted, (n, D) of each; the last block then computes
        its second half for no others. `modality`: the one that is read, where each has something for itself.
        """
        if bias is not None and bias.ndim == 5 and len(bias) != len(self.blocks):
            raise ValueError(
                f"the frontend gives {len(bias)} attention biases; "
                f"the trunk has {len(self.blocks)} blocks (model.trunk.depth)"
            )
        biases = [bias] * len(self.blocks) if bias is None or bias.ndim < 5 else list(bias)
        x = self.dropout(_of(self.input_norm, modality)(x))
        results = []
        for number, (block, bias) in enumerate(zip(self.blocks, biases, strict=True)):
            if self.training and self._drops(number):
                continue
            wanted = only if block is self.blocks[-1] else None
            if self.training and self.gradient_checkpointing:
                x, ffn = checkpoint(block, x, bias, wanted, modality, use_reentrant=False)
            else:
                x, ffn = block(x, bias, wanted, modality)
            if layers != "none" and number >= first:
                result = ffn if layers == "ffn" else x
                results.append(result if wanted is not None else _taken(result, only))
        x = x if x.ndim == 2 else _taken(x, only)  # the last block was dropped
        return _of(self.final_norm, modality)(x), results

    def _drops(self, number: int) -> bool:
        """Whether block `number` is left out of this pass; drawn where it may be."""
        chance = self.layer_drops[number]
        if not chance:
            return False
        return (torch.rand(()).item() if self.layer_draws is None else self.layer_draws.random()) < chance

    def init_weights(self) -> None:
        """Every weight as published: BERT's normal, BEiT's truncated normal with depth-scaled output projections, or
        torch's own; of copies the first, and then the others are equal to it."""
        own = own_layers(self).values()
        copies = {other for layer in own for other in layer.others}
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for number, block in enumerate(self.blocks, start=1):
            for name, linear in block.named_modules(memo=set(copies)):
                if isinstance(linear, nn.Linear):
                    _init_linear(linear, self.config, depth=number if name.endswith(("proj", "fc2")) else None)
            for name, parameter in block.named_parameters():
                if name.endswith(("q_bias", "v_bias")):
                    nn.init.zeros_(parameter)
                elif name in ("scale1", "scale2"):
                    nn.init.constant_(parameter, self.config.layer_scale)
        for layer in own:
            layer.make_equal()


def _init_linear(linear: nn.Linear, config: TrunkConfig, depth: int | None) -> None:
    """`depth` is the block's number, from 1, for what is added to the residual stream."""
    if config.init == "default":
        linear.reset_parameters()
        return
    if config.init == "normal":
        nn.init.normal_(linear.weight, std=config.init_std)
    elif config.init == "xavier":
        nn.init.xavier_uniform_(linear.weight)
    else:
        std = config.init_std / (2 * depth) ** 0.5 if depth else config.init_std
        nn.init.trunc_normal_(linear.weight, std=std, a=-std, b=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def precision_of(x: Tensor) -> torch.dtype:
    """What queries are in where `x` is: autocast's precision, or that of `x`."""
    kind = x.device.type
    rounded = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # of meta tensors none is
    return torch.get_autocast_dtype(kind) if rounded else x.dtype


def attention_bias(padding: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask for `scaled_dot_product_attention` from (N, T) padding and an additive (H, T, T), (N, H, T, T) or
    (L, N, H, T, T) bias."""
    if padding is None:
        return bias[None] if bias is not None and bias.ndim == 3 else bias  # with three dimensions it takes a slow path
    padding = padding[:, None, None, :]  # (N, 1, 1, T)
    return ~padding if bias is None else bias.masked_fill(padding, float("-inf"))
