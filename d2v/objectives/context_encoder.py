"""Context encoders (arXiv 1604.07379): a hidden region, the middle of an image or rectangles, is filled in.

As published: squared error, ten times as much on a ring around the region that is seen and predicted too, its mean over
both, and an adversarial term on what was filled in, by itself. Here the network is the encoder with a mask token in
hidden places and a head for each token, and the ring is one of whole patches, where it was 4 of the region's 64 pixels:
at ten times it is more than the published three quarters of all weight, so recipes take less. The
discriminator reads patches, has no batch norm, and learns in the same step and at the same rate (published: a tenth):
its own loss reaches its weights alone, what it says of regions the others alone.
N masked rows, T tokens of a grid of R rows and Q columns, P numbers of a token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from d2v.models.encoder import D2vModel
from d2v.models.heads import perceptron
from d2v.objectives.common.masked import frontend_of, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """Weights of the ring and of the adversarial term; the published values, of which features need only the first."""

    name: str = setting("context_encoder", "Which method.")
    ring_weight: float = setting(
        10.0, "Of a visible token beside a hidden one; 0: there is no ring.", least=0, limit=1_000_000
    )
    adversarial_weight: float = setting(
        0.001, "Of what the discriminator says; the error has the rest. 0: there is none.", least=0, below=1
    )
    discriminator_dim: int = setting(
        64,
        "Channels that it makes of a patch; each convolution has twice as many.",
        least=1,
        limit=10_000,
        only={"adversarial_weight": True},
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class ContextEncoder(Objective):
    """An encoder, a head to pixels, and a discriminator if one is asked for."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens that do not lie in a grid."""
        super().__init__(teacher=False, encoder=encoder)
        self.config, frontend, dim = config, frontend_of(encoder), encoder.trunk.config.dim
        content_dim = frontend.content_dim()
        if frontend.grid is None:
            raise ValueError("context_encoder fills in regions of a grid, and tokens here are a sequence: take mae")
        self.head = perceptron([dim, dim, content_dim])
        self.discriminator = None
        if config.adversarial_weight:
            self.discriminator = discriminator(content_dim, min(frontend.grid), config.discriminator_dim)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """The error of region and ring, what the discriminator says, and its own loss; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, weight = self.student["encoder"], self.config.adversarial_weight
        frontend, hidden = encoder.frontend(view.modality), mask.hidden
        ring = beside(hidden, frontend.grid) if self.config.ring_weight else torch.zeros_like(hidden)  # (N, T)
        region = hidden | ring
        pixels = frontend.content(**view.inputs)  # (N, T, P)
        filled = self.head(encoder(view, mask).x).float()  # (N, T, P)
        error = (filled - pixels).square().mean(dim=2)  # (N, T)
        total = (1 - weight) * (error * (hidden + self.config.ring_weight * ring)).sum()
        metrics = {
            "hidden_share": share_of(hidden, None),
            "error": (error.detach() * hidden).sum() / hidden.sum().clamp(min=1),
        }
        if self.discriminator is not None:
            seen = region[..., None]
            theirs, real = ((x * seen).transpose(1, 2).unflatten(2, frontend.grid) for x in (filled, pixels))
            fooled, judged = self.adversaries(theirs, real, region.sum(dim=1))
            total = total + weight * fooled + judged
            metrics["discriminator_loss"] = judged.detach() / region.sum().clamp(min=1)
        return Loss(total, region.sum(), metrics)

    def adversaries(self, filled: Tensor, real: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of regions (N, P, R, Q), zero around: how little the filled ones pass for real, and the discriminator's loss.

        Sums over rows, each times its tokens `rows` (N,). The first has no gradient by the discriminator.
        """
        assert self.discriminator is not None
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        said = functional_call(self.discriminator, fixed, (filled,))[:, 0].float()
        of_filled, of_real = self.discriminator(torch.cat([filled.detach(), real])).float()[:, 0].chunk(2)
        fooled = (F.softplus(-said) * rows).sum()
        return fooled, ((F.softplus(of_filled) + F.softplus(-of_real)) * rows).sum()


def beside(hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Visible tokens (N, T) that touch a hidden one, at a corner too."""
    wide = F.max_pool2d(hidden.float().unflatten(1, grid)[:, None], 3, stride=1, padding=1)  # (N, 1, rows, columns)
    return wide.flatten(1).bool() & ~hidden


def discriminator(content_dim: int, side: int, dim: int) -> nn.Sequential:
    """Patches to `dim` numbers, convolutions of 4 x 4 with stride 2, at most three, and one number:
    (N, P, R, Q) -> (N, 1)."""
    parts: list[nn.Module] = [nn.Conv2d(content_dim, dim, 1), nn.LeakyReLU(0.2)]
    most = 8 * dim
    while side >= 4 and dim < most:
        parts += [nn.Conv2d(dim, 2 * dim, 4, stride=2, padding=1), nn.GroupNorm(1, 2 * dim), nn.LeakyReLU(0.2)]
        dim, side = 2 * dim, side // 2
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, 1))


def build(encoder: D2vModel, config: Config) -> ContextEncoder:
    """The objective around an encoder."""
    return ContextEncoder(encoder, config)
