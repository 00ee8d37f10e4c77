"""MAE (arXiv 2111.06377): the encoder reads visible tokens alone, a decoder predicts what hidden ones are made of.

Pixels of patches, or log-mel frames (Audio-MAE, arXiv 2207.06405); there is no teacher.
B samples, N masked rows, T tokens, P numbers that a token is made of, n hidden tokens in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2v.models.decoder import BlockDecoder, BlockDecoderConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.masked import at, frontend_of, masked_view, refuse_mask_token, repeated, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import regression_loss
from d2v.settings import check_fields, section, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """Target and decoder; the published values."""

    name: str = setting("mae", "Which method.")
    norm_target: bool = setting(True, "Each token's numbers are predicted with zero mean and unit variance.")
    decoder: BlockDecoderConfig = section(BlockDecoderConfig, "The decoder's shape.")

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class MAE(Objective):
    """An encoder, and a decoder that is thrown away."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that are made of nothing to predict, or of one number each, or a mask token."""
        super().__init__(teacher=False, encoder=encoder)
        refuse_mask_token(encoder, config.name)
        content_dim, trunk = frontend_of(encoder).content_dim(), encoder.trunk.config
        if config.norm_target and content_dim < 2:
            raise ValueError("objective.norm_target is true, but a token is made of one number: set it to false")
        self.config = config
        self.decoder = BlockDecoder(trunk.dim, content_dim, config.decoder, norm_eps=trunk.norm_eps)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave nothing out."""
        masked_view(views, self.config.name, keep=True)

    def forward(self, views: list[View]) -> Loss:
        """The squared error of hidden tokens, its mean over their numbers; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=True)
        encoder = self.student["encoder"]
        frontend, padding = encoder.frontend(view.modality), repeated(view.padding, mask)
        target = at(self.target(frontend.content(**view.inputs)), mask)  # (n, P)
        prediction = self.decoder(encoder(view, mask), mask, frontend.grid, padding)  # (n, P)
        total = regression_loss(prediction, target, 0.0, "mean")
        return Loss(total, mask.hidden.sum(), {"hidden_share": share_of(mask.hidden, padding)})

    @torch.no_grad()
    def target(self, content: Tensor) -> Tensor:
        """What tokens are made of (B, T, P), each as it is or normalised: by the unbiased variance, as published."""
        if not self.config.norm_target:
            return content
        variance, mean = torch.var_mean(content, dim=-1, keepdim=True)
        return (content - mean) / (variance + 1e-6).sqrt()


def build(encoder: D2vModel, config: Config) -> MAE:
    """The objective around an encoder."""
    return MAE(encoder, config)
