"""A guard against collapse for methods that predict their own features: samples must stay spread like a Gaussian.

B samples of this process, M masks of each, N = B * M rows, T content tokens, K that the student encoded, D width.
"""

import torch
from torch import Tensor

from d2v.models.heads import mean_of_tokens
from d2v.objectives.common.gaussian import directions, sigreg, visreg
from d2v.objectives.common.objective import check_together
from d2v.training.distributed import world_size

GUARDS = {"sigreg": sigreg, "visreg": visreg}
DIRECTIONS = 1024
# what the settings of such methods say
GUARD = "A term that keeps the mean features of the batch's samples, as the student has them, spread like a Gaussian."
GUARD_WEIGHT = "Weight of the guard beside the loss of a hidden token."


def guard(name: str, samples: list[Tensor], generator: torch.Generator) -> Tensor:
    """The mean over some sets of rows, a row a sample, (B, D) each, of how far they are from N(0, I): ().

    `name`: a key of GUARDS. The generator must be the same on all processes.
    """
    along = directions(samples[0].shape[1], DIRECTIONS, generator)
    return torch.stack([GUARDS[name](rows, along) for rows in samples]).mean()


def means_of_visible(x: Tensor, keep: Tensor, padding: Tensor | None, masks: int) -> list[Tensor]:
    """What the student encoded, (N, K, D), as the mean token of each sample, (B, D), for each of M masks.

    `keep` (N, K) are its places among the T tokens, of which `padding` (B, T) says what is no data.
    """
    if padding is not None:
        padding = padding.repeat_interleave(masks, dim=0).gather(1, keep)  # (N, K)
    means = mean_of_tokens(x.float(), padding)  # (N, D)
    return list(means.view(-1, masks, x.shape[2]).unbind(dim=1))


def check_guard(name: str, batch_size: int, parts: int) -> None:
    """ValueError: batches, as check_batch is told of them, of which a guard does not see at least two samples at once.

    `name`: a key of GUARDS, or none.
    """
    if name == "none":
        return
    check_together(f"objective.guard={name}", batch_size, parts, world_size())
    if batch_size < 2:
        raise ValueError(f"train.batch_size is {batch_size}; objective.guard={name} needs at least two samples")
