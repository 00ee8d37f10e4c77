"""What methods share that bring two modalities to one space.

B rows of this process, N of all, P width of the space.
"""

from typing import Any

import torch
from torch import Tensor

from d2v.models.alignment import project, projections
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective, check_prefixes, check_together, freeze
from d2v.training.distributed import gather, gather_with_gradient, mine, world_size
from d2v.types import View

FROZEN = (
    "Parts of the encoder that are not trained (prefixes of names, such as trunk or frontends.image): LiT keeps one "
    "side as it is."
)


class Paired(Objective):
    """Student encoder, and a projection of each modality; no teacher."""

    def __init__(self, encoder: D2vModel, config: Any, width: int, frozen: list[str]):
        """ValueError: one modality, or a part of the encoder that does not exist."""
        modalities = list(encoder.config.frontends)
        if len(modalities) != 2:
            raise ValueError(
                f"{config.name} compares two modalities; this part reads {', '.join(modalities)}: name it by two, such "
                "as image+text"
            )
        super().__init__(teacher=False, encoder=encoder, projections=projections(encoder, width))
        for frontend in encoder.frontends.values():  # nothing is ever hidden
            for name, parameter in frontend.named_parameters():
                if name == "mask_token":
                    parameter.requires_grad_(False)
        check_prefixes(frozen, encoder)
        freeze(frozen, encoder)
        self.config = config

    def check(self, views: list[View]) -> None:
        """ValueError: other than one view of each of two modalities."""
        if len({view.modality for view in views}) != 2 or len(views) != 2:
            found = ", ".join(view.modality for view in views)
            raise ValueError(f"{self.config.name} compares one view of each of two modalities; there are {found}")

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: batches of one row, or that are not seen whole."""
        check_together(self.config.name, batch_size, parts, world_size())
        if batch_size < 2:
            raise ValueError(
                f"train.batch_size is {batch_size}; {self.config.name} tells a row's partner from those of other rows: "
                "at least 2"
            )

    def vectors(self, views: list[View]) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, P) of both modalities."""
        student = self.student
        first, second = (project(student["encoder"], student["projections"], view) for view in views)
        return first, second


def positives(view: View, rows: int, device: torch.device) -> Tensor:
    """(B, N) bool: which rows of the global batch belong to each of this process's: those of its label, or itself."""
    if view.labels is None:
        return mine(rows, device)[:, None] == torch.arange(rows * world_size(), device=device)
    return view.labels[:, None] == gather(view.labels)[None]


def of_all(x: Tensor) -> Tensor:
    """(B, P) -> (N, P), with gradients."""
    return gather_with_gradient(x)


@torch.no_grad()
def found(cosines: Tensor, wanted: Tensor) -> Tensor:
    """Share of rows whose nearest candidate belongs to them: cosines (B, N), wanted (B, N) bool."""
    nearest = cosines.argmax(dim=1, keepdim=True)
    return wanted.gather(1, nearest).float().mean()
