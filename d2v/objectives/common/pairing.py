"""What methods share that compare two modalities of the same samples: encoder, projections and a learned scale.

B samples of this process, N of all, P width of the space.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v.models.alignment import D2vForAlignment, new_projections, projected
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective, check_together, freeze, freeze_mask_tokens
from d2v.objectives.common.regression import spread_of
from d2v.training.distributed import gather, mine, world_size
from d2v.types import Pooled, View

FREEZE = (
    "Parts of the encoder that are not trained, and read as in evaluation (prefixes of names): trunk and "
    "frontends.NAME leave the features of that modality as they are (LiT, arXiv 2111.07991)."
)


class Pairing(Objective):
    """No teacher. Cosines of the two views' vectors are multiplied by exp(log_scale), which is learned."""

    log_scales: ClassVar[tuple[float, float]] = (-math.inf, math.inf)  # to which it is cut back before each step

    def __init__(self, encoder: D2vModel, config: Any):
        """ValueError: a part to freeze that the encoder does not have."""
        freeze_mask_tokens(encoder)
        freeze(config.freeze, encoder)
        projections = new_projections(encoder.config.frontends, encoder.trunk.config.dim, config.projection_dim)
        super().__init__(teacher=False, encoder=encoder, projections=projections)
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))  # () of no dimension: no decay

    def train(self, mode: bool = True) -> "Pairing":
        """What is frozen as a whole stays in evaluation mode: without dropout."""
        super().train(mode)
        encoder: Any = self.student["encoder"]
        for part in (encoder.trunk, *encoder.frontends.values()):
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def aligned(self) -> D2vForAlignment:
        """A copy of what is trained, as a model."""
        encoder: Any = self.student["encoder"]
        return D2vForAlignment.of(encoder, self.student["projections"])  # type: ignore[arg-type]

    def check(self, views: list[View]) -> None:
        """ValueError: not two views of two modalities, of as many rows, with labels on both or on none."""
        name, modalities = self.config.name, [view.modality for view in views]
        if len(views) != 2 or len(set(modalities)) != 2:
            raise ValueError(
                f"{name} compares two modalities of the same samples; the batches have {len(views)} views, of "
                f"{' and '.join(dict.fromkeys(modalities))}: it is of parts that pair two, such as image+text"
            )
        rows = [len(next(iter(view.inputs.values()))) for view in views]
        if rows[0] != rows[1]:
            raise ValueError(
                f"{name} compares rows one by one; there are {rows[0]} of {modalities[0]} and {rows[1]} of "
                f"{modalities[1]}"
            )
        labels = [view.labels for view in views]
        if labels[0] is None and labels[1] is None:
            return
        for modality, one in zip(modalities, labels, strict=True):
            if one is None:
                raise ValueError(f"{name} takes rows of equal labels for pairs; those of {modality} have none")
            if one.shape != (rows[0],):
                raise ValueError(f"{name} takes one label a row; those of {modality} have the shape {tuple(one.shape)}")
        if not torch.equal(*labels):  # type: ignore[arg-type]
            raise ValueError(f"{name} compares rows one by one; the labels of both views differ: they are other rows")

    def check_masks(self, views: list[View]) -> None:
        """ValueError: masks, which are not read."""
        masked = [view.modality for view in views if view.mask is not None]
        if masked:
            raise ValueError(f"{self.config.name} reads views whole; those of {masked[0]} have masks")

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: batches of one, or that processes do not share evenly, or that are cut into micro-batches."""
        if batch_size < 2:
            raise ValueError(
                f"train.batch_size is {batch_size}; {self.config.name} compares the samples of a batch: at least "
                "2 must be together"
            )
        check_together(self.config.name, batch_size, parts, world_size())

    def begin_step(self, step: int, steps: int) -> None:
        """The scale is cut back here, so that it can fall again: a bound within the loss would hold it fast."""
        super().begin_step(step, steps)
        with torch.no_grad():
            self.log_scale.clamp_(*self.log_scales)

    def vectors(self, views: list[View]) -> tuple[Tensor, Tensor]:
        """Unit vectors of both views, (B, P) float32 each."""
        encoder, projections = self.student["encoder"], self.student["projections"]
        first, second = (projected(encoder(view), view, projections) for view in views)  # type: ignore[arg-type]
        return first, second

    @torch.no_grad()
    def described(self, similarity: Tensor, right: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor | Pooled]:
        """Metrics of the cosines (B, N) of the first view's rows, and of both views' unit vectors, (B, P) each."""
        return {
            "scale": self.log_scale.exp(),
            "accuracy": found(similarity, right),
            "positives": right.sum(dim=1).float().mean(),
            "prediction_spread": spread_of(first),
            "target_spread": spread_of(second),
        }


def right_ones(view: View, num_rows: int) -> Tensor:
    """(B, N) bool: which of all processes' rows are right for each of this process's, those of its label.

    Of labels (B, 2) those that are equal in one of the two; without labels its own row alone.
    """
    if view.labels is not None:
        equal = view.labels.unsqueeze(1) == gather(view.labels)
        return equal if equal.ndim == 2 else equal.any(dim=2)
    device = next(iter(view.inputs.values())).device
    everyone = torch.arange(num_rows * world_size(), device=device)
    return mine(num_rows, device).unsqueeze(1) == everyone


def found(similarity: Tensor, right: Tensor) -> Tensor:
    """Share of rows (B, N) whose nearest is a right one; rows that are equally near are not found."""
    best = similarity.masked_fill(~right, -math.inf).amax(dim=1)
    return (best > similarity.masked_fill(right, -math.inf).amax(dim=1)).float().mean()
