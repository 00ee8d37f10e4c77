"""Reductions across processes; each works alone too."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over processes, without gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, without gradient."""
    return all_sum(x) / world_size()


def first_error(error: str | None) -> str | None:
    """The first error message of any process, so that all of them stop together."""
    if world_size() == 1:
        return error
    messages: list = [None] * world_size()
    dist.all_gather_object(messages, error)
    return next((message for message in messages if message is not None), None)


def mean_of_metrics(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each metric averaged over processes, in one reduction."""
    if not metrics:
        return metrics
    names = sorted(metrics)
    values = all_mean(torch.stack([metrics[name].float() for name in names]))
    return dict(zip(names, values, strict=True))
