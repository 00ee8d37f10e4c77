"""Reductions and gathering across processes; each works alone too.

n rows of a process, N = world * n rows of all. Rows of the global batch fall to the processes in turn, as
modalities/common/sampling.py deals them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from d2v.types import Pooled


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over processes, without gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_max(x: Tensor) -> Tensor:
    """The largest value of each entry of `x` over processes, without gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def all_mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, without gradient."""
    return all_sum(x) / world_size()


def first_error(error: str | None) -> str | None:
    """The first error message of any process, so that all of them stop together."""
    return next((message for message in of_all(error) if message is not None), None)


def together(act: Callable[[], object]) -> None:
    """Calls it on every process. ValueError, on all: one of them raised it; with another error the others wait."""
    fault = None
    try:
        act()
    except ValueError as error:
        fault = str(error)
    fault = first_error(fault)
    if fault is not None:
        raise ValueError(fault)


def of_all(value: Any) -> list[Any]:
    """A picklable value of each process, in their order."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def pooled(sums: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor | Pooled:
    """The metric `value` of `sums` (S,) over all processes: alone at once, else when it is logged, so that no step
    waits."""
    return value(sums) if world_size() == 1 else Pooled(sums.double(), value)


def mean_of_metrics(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each metric averaged over processes, in one reduction."""
    if not metrics:
        return metrics
    names = sorted(metrics)
    values = all_mean(torch.stack([metrics[name].float() for name in names]))
    return dict(zip(names, values, strict=True))


def is_sharded(module: nn.Module) -> bool:
    """Whether the processes hold shares of a module's parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def share(x: Tensor) -> Tensor:
    """What this process holds of a sharded tensor, in the same memory; of another tensor all of it."""
    return x.to_local() if isinstance(x, DTensor) else x


def shares(tensors: list[Tensor]) -> list[Tensor]:
    """`share` of each, without gradient."""
    return [share(x.detach()) for x in tensors]


def gather(x: Tensor) -> Tensor:
    """Rows (n, ...) of all processes, in the order of the global batch, (N, ...), without gradient."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows (n, ...) of all processes, in the order of the global batch, (N, ...), with gradients.

    Those of each process's rows are the sum over what all processes compute from them.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def sum_with_gradient(x: Tensor) -> Tensor:
    """The sum of `x` over processes, with gradients from all of them."""
    return _Sum.apply(x) if world_size() > 1 else x


def mean_with_gradient(x: Tensor) -> Tensor:
    """The mean of `x` over processes, with gradients from all of them: of means of equally many rows, that of all."""
    return sum_with_gradient(x) / world_size()


def mine(num_rows: int, device: torch.device) -> Tensor:
    """Where this process's `num_rows` rows lie among those of all, (n,)."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return torch.arange(num_rows, device=device) * world_size() + rank


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0])[dist.get_rank() :: world_size()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0])
