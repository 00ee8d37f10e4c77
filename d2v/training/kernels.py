"""Which kernels of torch attention will run by, for the log of a run.

H heads, T tokens, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from d2v.models.encoder import D2vModel
from d2v.models.transformer import Trunk

T = 64  # tokens of what is asked about: kernels are chosen by shape only where these are very few
NAMES = {
    SDPBackend.MATH: "plain products",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN's attention",
}


def attention_line(student: nn.Module, device: torch.device, mixed_precision: str) -> str:
    """What the student's blocks run by in training, of each modality; "" where there are no blocks."""
    encoder: Any = next((module for module in student.modules() if isinstance(module, D2vModel)), None)
    if encoder is None or not len(encoder.trunk.blocks):
        return ""
    trunk = encoder.trunk
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, torch.float32)
    said = []
    for name, frontend in encoder.frontends.items():
        with torch.no_grad():
            bias = frontend.bias(*(() if frontend.grid else (T,)))
        if bias is not None:
            said.append(f"{name}: additive bias, {_kernel(trunk, device, precision, bias)}")
            continue
        plain, padded = (
            _kernel(trunk, device, precision, mask) for mask in (None, torch.ones(1, 1, 1, T, dtype=torch.bool))
        )
        said.append(f"{name}: no bias, {plain}" + (f"; where padded, {padded}" if padded != plain else ""))
    return f"attention in {str(precision).removeprefix('torch.')} of " + "; ".join(said)


def _kernel(trunk: Trunk, device: torch.device, precision: torch.dtype, bias: Tensor | None) -> str:
    """What torch takes for queries like the trunk's with this bias or mask (..., H or 1, T or 1, T)."""
    config = trunk.config
    dropout = config.attention_dropout
    if dropout and device.type == "cpu":
        return "plain products with dropout"
    tokens = T if bias is None else bias.shape[-1]
    query = torch.empty(2, config.num_heads, tokens, config.dim // config.num_heads, dtype=precision, device=device)
    query.requires_grad_()
    if bias is not None:
        bias = bias[0] if bias.ndim == 5 else bias  # of the first block
        bias = bias.to(device, precision if bias.is_floating_point() else bias.dtype).expand(2, -1, tokens, -1)
    chosen = torch._fused_sdp_choice(query, query, query, attn_mask=bias, dropout_p=dropout, is_causal=False)
    return NAMES.get(SDPBackend(chosen), SDPBackend(chosen).name)
