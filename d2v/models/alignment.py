"""D2vForAlignment: an encoder of several modalities, and for each a projection to one space of unit vectors.

B samples, D width of the encoder, P width of the space.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.initialization import guard_torch_init_functions

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, D2vPreTrainedModel, build_config, key_of
from d2v.models.heads import mean_of_tokens
from d2v.types import View


@dataclass
class AlignmentConfig:
    """D2vConfig.task of such a model."""

    projection_dim: int = 256


class D2vForAlignment(D2vPreTrainedModel):
    """What pictures, sounds and words that belong together have one vector for."""

    def __init__(self, config: D2vConfig):
        """ValueError: as D2vModel; a task setting that this model does not have."""
        super().__init__(config)
        width = build_config(AlignmentConfig, config.task, "task").projection_dim
        self.encoder = D2vModel(config)
        self.projections = projections(self.encoder, width)
        self.main_input_name = self.encoder.main_input_name
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As D2vModel does; what `from_pretrained` has loaded stays."""
        self.encoder.initialize_weights()
        with guard_torch_init_functions():
            for projection in self.projections.values():
                fill(projection)

    def project(self, view: View) -> Tensor:
        """(B, P) unit vectors of a view."""
        return project(self.encoder, self.projections, view)

    def forward(self, view: View | Tensor | None = None, **inputs: Any) -> Tensor:
        """(B, P) unit vectors of a view, or of raw inputs by Hugging Face's names.

        ValueError: no frontend takes them.
        """
        return self.project(self.encoder.view(view, **inputs))


def projections(encoder: D2vModel, width: int) -> nn.ModuleDict:
    """A linear layer without bias for each modality, as CLIP's (arXiv 2103.00020)."""
    made = {name: nn.Linear(encoder.trunk.config.dim, width, bias=False) for name in encoder.frontends}
    for projection in made.values():
        fill(projection)
    return nn.ModuleDict(made)


def fill(projection: nn.Linear) -> None:
    """N(0, 1 / D), as CLIP's code."""
    nn.init.normal_(projection.weight, std=projection.in_features**-0.5)


def project(encoder: Any, layers: nn.ModuleDict, view: View) -> Tensor:
    """(B, P) unit vectors in float32: the mean over content tokens, projected."""
    mean = mean_of_tokens(encoder(view).x.float(), view.padding)  # (B, D)
    with torch.autocast(mean.device.type, enabled=False):
        return F.normalize(layers[key_of(view.modality)](mean), dim=1)
