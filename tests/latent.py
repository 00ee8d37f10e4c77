"""Tiny objectives that predict hidden tokens, student and teacher apart, and a batch of each modality."""

from pathlib import Path

import tiny
import torch

from d2v.objectives.common.objective import Objective
from d2v.types import View


def build(name: str, modality: str, folder: Path | str, *more: str) -> tuple[Objective, View]:
    """With perturbed weights, and clips and texts of unequal lengths."""
    unpacked = ("data.pack_seconds=0",) if modality == "speech" else ()
    config = tiny.config_of(modality, folder, tiny.using(name), *unpacked, *more)
    objective = tiny.objective_of(config)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batches = tiny.batches_of(config)
    views = [batches(step, 0, 1)[0][0] for step in range(20)]
    view = next((view for view in views if view.padding is not None), views[0])
    assert (view.padding is not None) == (modality != "image")
    objective.begin_step(0, 20)
    return objective.train(), view
