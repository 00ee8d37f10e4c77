"""Parameter groups and the arithmetic on gradients."""

import re

import torch
from torch import Tensor, nn


def parameter_groups(
    module: nn.Module, weight_decay: float, *, decay_all: bool = False, layer_decay: float = 1.0, frontends: bool = True
) -> list[dict]:
    """Trained parameters in groups of one decay and one `scale` of the learning rate (see layer_scale).

    Vectors (biases, norms, tokens) are not decayed, unless `decay_all`: fairseq decays everything.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    depth = 1 + max((number for number in map(_block, trained) if number is not None), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for is_vector in (False, True):
        for name, p in trained.items():
            if is_vector == (not decay_all and p.squeeze().ndim <= 1):
                key = 0.0 if is_vector else weight_decay, layer_scale(name, depth, layer_decay, frontends)
                groups.setdefault(key, []).append(p)
    return [{"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in groups.items()]


def layer_scale(name: str, depth: int, layer_decay: float, frontends: bool) -> float:
    """Share of the learning rate: layer_decay ** (depth + 1 - layer) of an encoder of `depth` blocks, whose layer is the block's number from 1.

    Layer 0, or with `frontends` false the last: what comes before the blocks. Layer depth + 1: all else, and the biases of attention, which
    every block reads. Source: BEiT's fine-tuning code; data2vec 2.0's leaves what is not a block at the full rate.
    """
    block = _block(name)
    if block is not None:
        return layer_decay ** (depth - block)
    before = (".frontends." in name or ".trunk.input_norm." in name) and "bias_table" not in name and ".alibi." not in name
    return layer_decay ** (depth + 1) if before and frontends else 1.0


def _block(name: str) -> int | None:
    """The number of the block, from 0, that a parameter of an encoder lies in."""
    found = re.search(r"\.trunk\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


@torch.no_grad()
def scale_and_clip(parameters: list[nn.Parameter], scale: Tensor, max_norm: float) -> Tensor:
    """Multiplies gradients by `scale`, clips their global norm to `max_norm` (0: never) in one pass, and returns the norm before clipping."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True) * scale
    factor = scale if max_norm == 0 else scale * (max_norm / norm).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
