"""Methods that compare several views of a sample, one vector each, after the encoder and a projection head.

V views, B samples of this process, D width.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.models.batch_norm import group_batch_norms
from d2v.models.encoder import D2vModel
from d2v.models.heads import mean_of_tokens
from d2v.objectives.common.objective import Objective, check_together, freeze_mask_tokens
from d2v.training.distributed import world_size
from d2v.types import Features, Mask, View


class MultiView(Objective):
    """An Objective that reads at least `Config.num_views` whole views, and whose statistics are those of the global
    batch."""

    # true: more views than Config.num_views, which nothing would read, are an error
    exact_views: ClassVar[bool] = False
    config: Any  # of the method: its name and num_views

    def __init__(
        self, encoder: D2vModel, *, teacher: bool = True, groups: int = 1, hides: bool = False, **averaged: nn.Module
    ):
        """`groups`: of the batch norms (see d2v/models/batch_norm.py).

        `hides` false: no token is ever hidden, and mask tokens are not trained.
        """
        if not hides:
            freeze_mask_tokens(encoder)
        averaged = {"encoder": group_batch_norms(encoder, groups), **averaged}
        super().__init__(teacher=teacher, **averaged)  # type: ignore[arg-type]
        self.groups, self.hides = groups, hides

    def check(self, views: list[View]) -> None:
        """ValueError: too few whole views, or some that the method does not read."""
        config = self.config
        if self.exact_views and len(views) > config.num_views:
            raise ValueError(
                f"{config.name} compares {config.num_views} views of a sample; "
                f"data.views and data.local_views make {len(views)}"
            )
        if num_whole(views) < config.num_views:
            raise ValueError(
                f"{config.name} compares {config.num_views} views of a sample; data.views makes {num_whole(views)}: "
                "name as many there"
            )

    def check_masks(self, views: list[View]) -> None:
        """ValueError: masks that the method would not read."""
        if not self.hides and any(view.mask is not None for view in views):
            name = self.config.name
            raise ValueError(f"{name} reads views whole, and data.mask_views=true hides tokens: leave it out")

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: batches that processes or groups do not share evenly, are too small, or are cut into
        micro-batches."""
        name, world = self.config.name, world_size()
        check_together(name, batch_size, parts, world)
        norms = any(isinstance(module, _BatchNorm) for module in self.modules())
        groups = self.groups if norms else 1
        if groups > 1 and groups % world:
            raise ValueError(
                f"objective.norm_groups is {groups}; it must be 1 or a multiple of the number of processes, {world}"
            )
        if batch_size % groups or batch_size < 2 * groups:
            what = f", of which batch norm takes {groups} equal groups (objective.norm_groups)" if groups > 1 else ""
            raise ValueError(f"train.batch_size is {batch_size}{what}: at least two samples must be together")


def summary(encoder: nn.Module, view: View, mask: Mask | None = None) -> Tensor:
    """One vector per sample, (B, D): the class token where the encoder has one, else the mean over content tokens."""
    return pooled(encoder(view, mask), view.padding)


def pooled(features: Features, padding: Tensor | None) -> Tensor:
    """One vector per sample, (B, D), of what the encoder returned, with padding (B, T)."""
    return mean_of_tokens(features.x, padding) if features.extra is None else features.extra[:, 0]


def embedding(side: nn.ModuleDict, view: View) -> Tensor:
    """The projection (B, P) of a view by the student or the teacher."""
    return side["projector"](summary(side["encoder"], view))


def projections(side: nn.ModuleDict, views: list[View]) -> list[Tensor]:
    """The projection (B, P) of each view by the student or the teacher.

    Views of one shape are one forward pass, and all are one of the projector's.
    """
    summaries = torch.cat(each(views, lambda view: summary(side["encoder"], view)))  # (V * B, D)
    return list(side["projector"](summaries).chunk(len(views)))


def by_shape(views: list[View]) -> Iterator[View]:
    """Views with neighbours of the same shape joined along the samples, so that each resolution is one forward pass."""
    start = 0
    for stop in range(1, len(views) + 1):
        if stop == len(views) or _shapes(views[stop]) != _shapes(views[start]):
            yield joined(views[start:stop])
            start = stop


def joined(views: list[View]) -> View:
    """Views of one shape as one view of all their samples, one view after another."""
    first = views[0]
    if len(views) == 1:
        return first
    inputs = {}
    for name in first.inputs:
        inputs[name] = torch.cat([view.inputs[name] for view in views])
    padding = _concatenated([view.padding for view in views])
    mask = None
    if first.mask is not None:
        masks = [view.mask for view in views if view.mask is not None]
        hidden = torch.cat([one.hidden for one in masks])
        mask = Mask(hidden, _concatenated([one.keep for one in masks]), _concatenated([one.channels for one in masks]))
    return View(first.modality, inputs, padding, mask)


def _concatenated(parts: list[Tensor | None]) -> Tensor | None:
    """All of them along the samples; None where the first is None, as then all are."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if parts[0] is not None else None


def each(views: list[View], function: Callable[[View], Tensor]) -> list[Tensor]:
    """`function` of every view, (B, ...) each, one call per shape."""
    results = []
    for view in by_shape(views):
        results += function(view).split(num_samples(views[0]))
    return results


def num_whole(views: list[View]) -> int:
    """How many of them are no local views."""
    return sum(not view.local for view in views)


def num_samples(view: View) -> int:
    """B of a view."""
    return len(next(iter(view.inputs.values())))


def generator_of_step(step: int, device: torch.device, seed: int = 0) -> torch.Generator:
    """A source of what all processes must draw alike in a step of a run of this seed, whatever was drawn before."""
    # An odd number near 2 ** 32 / 1.618: seeds near each other share no draws within millions of steps. A CPU's
    # generator reads 32 bits.
    return torch.Generator(device).manual_seed((step + seed * 2_654_435_761) % 2**32)


def _shapes(view: View) -> tuple:
    shapes = [(name, value.shape) for name, value in sorted(view.inputs.items())]
    return view.padding is None, view.mask is None, shapes
