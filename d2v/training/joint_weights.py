"""Weights of a joint run's parts by which all of them pull the trunk equally hard, measured before the first step."""

import torch
from accelerate import Accelerator

from d2v.objectives.joint import Joint
from d2v.protocols import Batches
from d2v.types import View


def weigh(objective: Joint, batches: Batches, accelerator: Accelerator, count: int) -> str:
    """Sets objective.weights to the median length of the parts' trunk gradients over each one's own; says them.

    Lengths are means over `count` batches of each part, of all processes, at the initial weights; no weight changes.
    """
    if not any(p.requires_grad for p in objective.student["encoder"].trunk.parameters()):
        raise ValueError("objective.weights=auto measures gradients in the trunk, which is frozen: give numbers")
    device, world = accelerator.device, accelerator.num_processes
    objective.to(device)
    sums = torch.zeros(len(objective.places), device=device)
    seen = torch.zeros_like(sums)
    step = 0
    with objective.untouched():
        while seen.min() < count:
            views = [View(*view).to(device) for view in batches(step, accelerator.process_index, world)[0]]
            for name, norm in objective.trunk_norms(views).items():
                sums[objective.places[name]] += norm
                seen[objective.places[name]] += 1
            step += 1
    norms = sums / seen
    weights = norms.median() / norms
    if not weights.isfinite().all():
        shown = ", ".join(f"{name} {norm:.3g}" for name, norm in zip(objective.places, norms.tolist(), strict=True))
        raise ValueError(f"objective.weights=auto: a part has no gradient in the trunk ({shown}); give numbers")
    objective.weights.copy_(weights)
    pairs = zip(objective.places, weights.tolist(), strict=True)
    return "objective.weights: " + ", ".join(f"{name} {weight:.4g}" for name, weight in pairs)
