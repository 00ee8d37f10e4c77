"""The model that brings modalities to one space: an encoder, and a projection of each modality.

B samples, T content tokens, D width, P width of the space.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.initialization import guard_torch_init_functions
from transformers.utils.generic import ModelOutput, can_return_tuple

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, D2vPreTrainedModel, build_config
from d2v.models.heads import mean_of_tokens
from d2v.settings import check_values, setting
from d2v.types import Features, View


@dataclass
class AlignmentConfig:
    """The space that modalities share."""

    projection_dim: int = setting(128, "Width of the projections.", least=1, limit=1_000_000)
    modalities: list[str] = setting([], "Those that have a projection; empty: all that the encoder reads.")

    def __post_init__(self):
        """ValueError: a width below 1."""
        check_values(self, "task")


@dataclass
class AlignmentOutput(ModelOutput):
    """What D2vForAlignment returns."""

    embeds: Tensor | None = None  # (B, P) float32, of length 1
    last_hidden_state: Tensor | None = None  # (B, T, D)
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def key_of(modality: str) -> str:
    """The name of a modality's projection: the last part of the name of a user's own package."""
    return modality.rpartition(".")[2]


def new_projections(modalities: Iterable[str], dim: int, projection_dim: int) -> nn.ModuleDict:
    """A linear layer from D to P for each modality, without a bias, N(0, 1 / D) as in CLIP's code."""
    layers = {}
    for name in modalities:
        layers[key_of(name)] = nn.Linear(dim, projection_dim, bias=False)
        nn.init.normal_(layers[key_of(name)].weight, std=dim**-0.5)
    return nn.ModuleDict(layers)


def projected(features: Features, view: View, projections: nn.ModuleDict) -> Tensor:
    """(B, P) float32, of length 1: the mean over the real tokens of what the trunk makes of a view, projected.

    ValueError: the modality has no projection.
    """
    if key_of(view.modality) not in projections:
        raise ValueError(f"there are projections of {', '.join(projections)}, not of {view.modality!r}")
    pooled = mean_of_tokens(features.x, view.padding)  # (B, D)
    return F.normalize(projections[key_of(view.modality)](pooled).float(), dim=1)


class D2vForAlignment(D2vPreTrainedModel):
    """A vector for each sample of any modality; the cosine of two says how well they belong together."""

    def __init__(self, config: D2vConfig):
        """ValueError: as D2vModel; a task setting that this model does not have, or a modality that it does not
        read."""
        super().__init__(config)
        self.task: AlignmentConfig = build_config(AlignmentConfig, config.task, "task")
        config.task = vars(self.task).copy()
        unknown = [name for name in self.task.modalities if name not in config.frontends]
        if unknown:
            raise ValueError(f"task.modalities has {unknown[0]!r}; this model reads {', '.join(config.frontends)}")
        self.encoder = D2vModel(config)
        self.main_input_name = self.encoder.main_input_name
        names = self.task.modalities or list(config.frontends)
        self.projections = new_projections(names, self.encoder.trunk.config.dim, self.task.projection_dim)
        self.post_init()

    @classmethod
    def of(cls, encoder: D2vModel, projections: nn.ModuleDict) -> "D2vForAlignment":
        """A model of copies of an encoder and of projections of some of its modalities."""
        given: dict[str, Any] = dict(projections.items())
        names = [name for name in encoder.config.frontends if key_of(name) in given]
        task = {"projection_dim": given[key_of(names[0])].out_features, "modalities": names}
        config = D2vConfig(copy.deepcopy(encoder.config.frontends), copy.deepcopy(encoder.config.trunk), task)
        with torch.random.fork_rng(devices=[]):  # a run in progress would miss the numbers that building draws
            model = cls(config)
        model.encoder.load_state_dict(encoder.state_dict())
        weights = {f"{key_of(name)}.weight": given[key_of(name)].weight for name in names}
        model.projections.load_state_dict(weights)
        return model.to(device=encoder.device, dtype=encoder.dtype).eval()  # type: ignore[call-arg]

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As D2vModel does; what `from_pretrained` has loaded stays."""
        self.encoder.initialize_weights()
        with guard_torch_init_functions():
            layer: Any
            for layer in self.projections.values():
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def project(self, view: View) -> Tensor:
        """(B, P) float32, of length 1. ValueError: no frontend or projection for the view's modality."""
        return projected(self.encoder(view, return_dict=True), view, self.projections)

    @can_return_tuple
    def forward(
        self,
        view: View | Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """The embeddings of a view, or of raw inputs by Hugging Face's names, and the features that they were read
        from.

        ValueError: inputs that no frontend takes, or of a modality that has no projection.
        """
        inputs |= {"pixel_values": pixel_values, "input_values": input_values, "input_ids": input_ids}
        view = self.encoder.view(view, **inputs, attention_mask=attention_mask)
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        features = self.encoder(view, return_dict=True, **asked)
        return AlignmentOutput(
            embeds=projected(features, view, self.projections),
            last_hidden_state=features.x,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
