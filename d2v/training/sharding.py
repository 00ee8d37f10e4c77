"""Sharded training (FSDP2): each process holds a share of every parameter, of its gradient and of its moments.

Each block of a trunk, of student and teacher alike, is a group that is whole only while it computes; all else is one
more group. Buffers (queues, centres, banks) are equal on all processes, and whole. Source: torch.distributed.fsdp.
"""

import copy
import warnings

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from d2v.models.transformer import Trunk
from d2v.objectives.common.objective import Objective
from d2v.training.distributed import all_max


class Sharding:
    """An objective whose parameters are from now on shared out among the processes."""

    def __init__(self, objective: Objective, accelerator: Accelerator):
        """ValueError: a method that reads parameters outside of its steps."""
        check_shards(objective)
        self.objective, self.device = objective, accelerator.device
        self.bare = _without_weights(objective)
        objective.to(accelerator.device)
        # What a block gives is changed in place nowhere, which is what torch warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        # Masters, what is gathered and what is reduced are float32; autocast, which accelerate puts around the step,
        # casts for matrix products alone, as without sharding. A MixedPrecisionPolicy would give norms weights in bf16,
        # which not every kernel takes beside float32 inputs.
        for trunk in [module for module in objective.modules() if isinstance(module, Trunk)]:
            for block in trunk.blocks:
                fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)

    def whole(self, *, wanted: bool = True) -> Objective | None:
        """A copy with whole parameters on the main process, None on the others, and where none of them wants it.

        Every process calls it.
        """
        if not all_max(torch.tensor(float(wanted), device=self.device)):
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.objective, options=options)
        if not state:
            return None
        whole = copy.deepcopy(self.bare)
        whole.load_state_dict(state, assign=True)
        return whole.to(self.device).train(self.objective.training)


def check_shards(objective: Objective) -> None:
    """ValueError: a method that reads parameters outside of its steps."""
    if not objective.can_be_sharded:
        raise ValueError(
            f"train.sharding is fsdp; {type(objective).__name__.lower()} reads parameters outside of its steps, and "
            "cannot be sharded: it must be none"
        )


def _without_weights(objective: Objective) -> Objective:
    """A copy whose parameters take no memory."""
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in objective.parameters()}
    return copy.deepcopy(objective, empty)
