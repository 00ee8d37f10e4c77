"""Changes of colour of whole batches, on the device: drawn with the crops, in the same order, made once all is there.

Pillow changes one image after the other on the processor, for which a fast device waits. What is drawn is equal; pixels
differ by Pillow's roundings to 8 bits and its approximation of the blur.

B images, C channels, S image size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from d2v.modalities.image import augment

BRIGHTNESS, CONTRAST, SATURATION, HUE, NONE = 0, 1, 2, 3, -1
TURNS = 5  # the four above in any order, and grey before or after them
HALF = 128 / 255  # from which on solarising turns a value round


class Drawn(NamedTuple):
    """What one image is to become."""

    turns: list[tuple[int, float]]  # what changes, and by which factor; in order
    sigma: float  # of the blur, in pixels; 0: none
    solarised: bool


class Colours(NamedTuple):
    """What the images of a batch are to become, and the statistics that normalise them."""

    kinds: Tensor  # (B, TURNS) which of the four changes at each turn, or NONE
    factors: Tensor  # (B, TURNS) float32
    sigma: Tensor  # (B,) float32
    solarised: Tensor  # (B,) bool
    mean: Tensor  # (1 or C,)
    std: Tensor  # (1 or C,)

    def to(self, device: torch.device | str) -> "Colours":
        """Every tensor on `device`."""
        return Colours(*(x.to(device, non_blocking=True) for x in self))

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pixels (B, C, S, S), uint8 or between 0 and 1, as a frontend reads them: changed, and normalised."""
        x = inputs["pixel_values"]
        x = x / 255 if x.dtype == torch.uint8 else x
        for kind, factor in zip(self.kinds.T, self.factors.T, strict=True):
            x = changed(x, kind, factor)
        x = blurred(x, self.sigma)
        x = torch.where(_each(self.solarised) & (x >= HALF), 1 - x, x)
        return inputs | {"pixel_values": (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)}


def collate(images: Sequence[tuple[Any, Drawn]], mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Colours]:
    """Pixels (B, C, S, S) of images of one size as they are, and what they are to become."""
    drawn = [later for _, later in images]
    kinds, factors = torch.full((len(drawn), TURNS), NONE), torch.ones(len(drawn), TURNS)
    for row, one in enumerate(drawn):
        for turn, (kind, factor) in enumerate(one.turns):
            kinds[row, turn], factors[row, turn] = kind, factor
    sigma, solarised = torch.tensor([one.sigma for one in drawn]), torch.tensor([one.solarised for one in drawn])
    colours = Colours(kinds, factors, sigma, solarised, torch.tensor(mean), torch.tensor(std))
    return augment.stacked([image for image, _ in images]), colours


def changed(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Images (B, C, S, S) between 0 and 1, each changed as `kind` (B,) says by `factor` (B,), as torchvision does."""
    kind, factor = _each(kind), _each(factor)
    grey = F.rgb_to_grayscale(x) if x.shape[1] == 3 else x  # (B, 1, S, S)
    base = torch.where(kind == CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey)
    base = torch.where(kind == BRIGHTNESS, 0.0, base)
    mixed = (factor * x + (1 - factor) * base).clamp(0, 1)
    turned = hue_turned(x, factor) if x.shape[1] == 3 else x
    return torch.where(kind == NONE, x, torch.where(kind == HUE, turned, mixed))


def hue_turned(x: Tensor, turn: Tensor) -> Tensor:
    """Colours (B, 3, S, S) between 0 and 1 with their hue turned by `turn` (B, 1, 1, 1), in rounds.

    Value v and chroma c of HSV stay: channel n of (5, 3, 1) is v - c max(0, min(k, 4 - k, 1)), k = n + 6 hue mod 6.
    """
    red, green, blue = x.unbind(1)
    v = x.amax(1)
    c = v - x.amin(1)
    some = torch.where(c > 0, c, 1.0)
    hue = torch.where(v == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    hue = torch.where(v == red, (green - blue) / some, hue) / 6  # of grey 0
    n = torch.arange(5, 0, -2, device=x.device).view(3, 1, 1)
    k = (n + 6 * (hue[:, None] + turn)).remainder(6)  # (B, 3, S, S)
    return v[:, None] - c[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, C, S, S), each under a Gaussian of its own deviation (B,) in pixels; 0: as it is.

    Along each side a product with a matrix of its weights, which sum to one at the margins too.
    """
    sharp = _each(sigma) == 0
    places = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32)
    distances = (places[:, None] - places) ** 2  # (S, S)
    weights = torch.exp(-distances / (2 * torch.where(sharp, 1.0, _each(sigma)) ** 2))  # (B, 1, S, S)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.where(sharp, x, weights @ x @ weights.mT)


def _each(x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return x.view(-1, 1, 1, 1)
