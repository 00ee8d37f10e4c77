"""Parameter groups and the arithmetic on gradients."""

import torch
from torch import Tensor, nn


def parameter_groups(module: nn.Module, weight_decay: float, *, decay_all: bool = False) -> list[dict]:
    """Trained parameters in two groups; vectors (biases, norms, tokens) are not decayed, unless `decay_all`: fairseq decays everything."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if decay_all or p.squeeze().ndim > 1]
    vectors = [p for p in trained if not decay_all and p.squeeze().ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def scale_and_clip(parameters: list[nn.Parameter], scale: Tensor, max_norm: float) -> Tensor:
    """Multiplies gradients by `scale`, clips their global norm to `max_norm` (0: never) in one pass, and returns the norm before clipping."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True) * scale
    factor = scale if max_norm == 0 else scale * (max_norm / norm).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
