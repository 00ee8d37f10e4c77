"""train.compile: the blocks of all trunks, the student's and the teacher's, as code compiled by torch.compile.

Each block is one graph, without breaks; what lies between blocks stays as it is, and so do the names of all weights.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from d2v.models.own import Own
from d2v.models.transformer import PostNormBlock, PreNormBlock

# How often the one `forward` that all blocks share may be compiled again: for the student and the teacher, for the last
# block, for each rate of drop path and each modality, and for new shapes until they are taken as variable.
LIMIT = 128


def blocks_to_compile(
    model: nn.Module, device: torch.device, say: Callable[[str], None], **how: Any
) -> Sequence[nn.Module]:
    """The blocks of `model`, which must not be shared out yet, after a copy of one was compiled and ran.

    Where that fails there are none to compile, and a line says why. `how`: more for torch.compile. ValueError: the
    model has no blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, PostNormBlock | PreNormBlock)]
    if not blocks:
        raise ValueError(
            "train.compile=true compiles the trunk's blocks, and this one has none (model.trunk.depth=0): "
            "set it to false"
        )
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    fault = _fault(blocks[0], device, how)
    if fault:
        say(f"train.compile=true, but compiling failed, and the run goes on without: {fault}")
        return []
    return blocks


def compile_blocks(blocks: Sequence[nn.Module], **how: Any) -> None:
    """Compiles blocks in place, each at its first call."""
    for block in blocks:
        if isinstance(block, FSDPModule):
            # What gathers a block's weights are hooks around `forward`, which no graph can hold.
            block.forward = torch.compile(block.forward, fullgraph=True, **how)
        else:
            block.compile(fullgraph=True, **how)


def _fault(block: nn.Module, device: torch.device, how: dict[str, Any]) -> str:
    """Why a copy of a block cannot be compiled and run forwards and backwards, or ""."""
    trial = copy.deepcopy(block).to(device).requires_grad_(True)
    owned = [layer for layer in trial.modules() if isinstance(layer, Own)]
    modality = next(iter(owned[0])) if owned else ""
    trial.compile(fullgraph=True, **how)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            x = torch.ones(2, 3, trial.attention.proj.in_features, device=device, requires_grad=True)  # type: ignore
            trial(x, None, None, modality)[0].sum().backward()
    except Exception as error:  # a compiler that is missing, or anything that it does not know
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return ""
