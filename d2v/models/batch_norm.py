"""Batch norm over groups of the global batch: one group of all processes (SyncBN), or several, as if each were a GPU of
its own (MoCo).

n rows of a process, C channels, G groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.training.distributed import all_mean, all_sum, sum_with_gradient, world_size


class GroupedBatchNorm(_BatchNorm):
    """Normalises each of G groups of the global batch by its own statistics; running ones are the groups' mean.

    Row i of the global batch is of group i mod G, however many processes share it. Evaluation is that of any batch
    norm.
    """

    def __init__(
        self, num_features: int, *, groups: int = 1, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ):
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, ...) -> the same shape. ValueError: groups that the processes, or rows that the groups, do not share
        evenly."""
        world = world_size()
        if not self.training or (self.groups == 1 and world == 1):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.groups == 1:
            return self._of_all(x)
        local = self.groups // world
        if self.groups % world or len(x) % local:
            raise ValueError(
                f"{len(x) * world} rows of {world} processes cannot be split into {self.groups} equal groups of batch "
                "norm (objective.norm_groups)"
            )
        mean, var = self.running_mean.repeat(local), self.running_var.repeat(local)
        weight = None if self.weight is None else self.weight.repeat(local)
        bias = None if self.bias is None else self.bias.repeat(local)
        grouped = x.reshape(len(x) // local, local * x.shape[1], *x.shape[2:])  # row i is of group i mod G
        assert self.momentum is not None
        out = F.batch_norm(grouped, mean, var, weight, bias, True, self.momentum, self.eps)
        self.running_mean.copy_(all_mean(mean.view(local, -1).mean(dim=0)))
        self.running_var.copy_(all_mean(var.view(local, -1).mean(dim=0)))
        return out.reshape(x.shape)

    def _of_all(self, x: Tensor) -> Tensor:
        """By the statistics of all processes' rows; sums in float32, squares around the mean."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        rest = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        y = x.float()
        count = all_sum(torch.full((), float(x.numel() // x.shape[1]), device=x.device))
        mean = sum_with_gradient(y.sum(dim=rest)) / count  # (C,)
        y = y - mean.view(shape)
        var = sum_with_gradient(y.square().sum(dim=rest)) / count
        y = y * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach() * (count / (count - 1)), self.momentum)
        return y.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""


def group_batch_norms(module: nn.Module, groups: int) -> nn.Module:
    """Replaces every batch norm inside `module` by a grouped one with the same weights.

    ValueError: one of a kind that has no counterpart.
    """
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm) or isinstance(child, GroupedBatchNorm):
            group_batch_norms(child, groups)
            continue
        if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise ValueError(
                f"{name} is a {type(child).__name__}; only plain batch norms can be computed across processes"
            )
        if child.momentum is None or not child.track_running_stats:
            raise ValueError(
                f"{name} is a batch norm without running statistics, or with those of a whole run (momentum None)"
            )
        made = GroupedBatchNorm(
            child.num_features, groups=groups, eps=child.eps, momentum=child.momentum, affine=child.affine
        )
        made.load_state_dict(child.state_dict())
        setattr(module, name, made)
    return module
