"""Maps of several sizes from the one map of a plain encoder, for detectors: ViTDet's simple feature pyramid.

Source: arXiv 2203.16527. B samples, D width, (H, W) positions of the encoder's map, P width of the pyramid.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d


class Pyramid(nn.Module):
    """(B, D, H, W) -> maps (B, P, scale * H, scale * W), and after the last one more of half its size.

    Each is of the one map that it is given: there are no sums from level to level.
    """

    def __init__(self, dim: int, out_channels: int, scales: list[float]):
        super().__init__()
        self.out_channels = out_channels  # torchvision's detectors ask for it
        self.levels = nn.ModuleList([_level(dim, out_channels, scale) for scale in scales])

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps by their numbers, finest first."""
        maps = [level(x) for level in self.levels]
        maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return OrderedDict((str(number), one) for number, one in enumerate(maps))


def _level(dim: int, out_channels: int, scale: float) -> nn.Sequential:
    """What makes one map: resized, then convolutions of 1 x 1 and 3 x 3 with their norms."""
    layers, width = _resizing(dim, scale)
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, out_channels, 1, bias=False),
        _norm(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        _norm(out_channels),
    )


def _resizing(dim: int, scale: float) -> tuple[list[nn.Module], int]:
    """What changes the size of the map, and the width that it then has."""
    if scale == 4:
        first, second = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2), nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2)
        return [first, _norm(dim // 2), nn.GELU(), second], dim // 4
    if scale == 2:
        return [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)], dim // 2
    return ([] if scale == 1 else [nn.MaxPool2d(2, ceil_mode=True)]), dim


def _norm(channels: int) -> LayerNorm2d:
    return LayerNorm2d(channels, eps=1e-6)
