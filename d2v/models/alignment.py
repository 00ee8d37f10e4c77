"""D2vForAlignment: an encoder of several modalities, and for each a projection to one space of unit vectors.

B samples, D width of the encoder, P width of the space.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
    modalities: list[str] = field(default_factory=list)  # that have a projection; none are named: all


class D2vForAlignment(D2vPreTrainedModel):
    """What pictures, sounds and words that belong together have one vector for."""

    def __init__(self, config: D2vConfig):
        """ValueError: as D2vModel; a task setting that this model does not have."""
        super().__init__(config)
        self.task: AlignmentConfig = build_config(AlignmentConfig, config.task, "task")
        config.task = asdict(self.task)
        self.encoder = D2vModel(config)
        self.projections = projections(self.encoder, self.task.projection_dim, self.task.modalities)
        self.main_input_name = self.encoder.main_input_name
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As D2vModel does; what `from_pretrained` has loaded stays."""
        self.encoder.initialize_weights()
        with guard_torch_init_functions():
            for projection in self.projections.values():
                fill(projection)

    @classmethod
    def of(cls, encoder: D2vModel, layers: nn.ModuleDict) -> "D2vForAlignment":
        """A model that holds an encoder and projections of some of its modalities."""
        config = copy.deepcopy(encoder.config)
        names = [name for name in config.frontends if key_of(name) in layers]
        config.task = {"projection_dim": layers[key_of(names[0])].out_features, "modalities": names}
        with torch.random.fork_rng(devices=[]):  # a run in progress would miss the numbers that building draws
            model = cls(config)
        model.encoder, model.projections = encoder, layers
        return model

    def project(self, view: View) -> Tensor:
        """(B, P) unit vectors of a view. ValueError: its modality has no projection."""
        if key_of(view.modality) not in self.projections:
            raise ValueError(
                f"this model has {', '.join(self.projections)} in one space, and not {view.modality}, which no pairs "
                "were given for"
            )
        return project(self.encoder, self.projections, view)

    def forward(self, view: View | Tensor | None = None, **inputs: Any) -> Tensor:
        """(B, P) unit vectors of a view, or of raw inputs by Hugging Face's names.

        ValueError: no frontend takes them.
        """
        return self.project(self.encoder.view(view, **inputs))


def projections(encoder: D2vModel, width: int, modalities: Sequence[str] = ()) -> nn.ModuleDict:
    """A linear layer without bias for each modality, or for those that are named, as CLIP's (arXiv 2103.00020)."""
    names = [key_of(name) for name in modalities] or list(encoder.frontends)
    made = {name: nn.Linear(encoder.trunk.config.dim, width, bias=False) for name in names}
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
