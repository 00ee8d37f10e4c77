"""data2vec 2.0's decoder: visible tokens back in their places, noise in the others, a few convolutions, a linear head.

N rows (samples x masks), T tokens, K visible tokens, n hidden tokens in all, D model width, C decoder width.
Source: data2vec 2.0 (arXiv 2212.07525) section 3. Convolutions are along the sequence for speech and text, over the
grid for images.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.heads import perceptron
from d2v.models.token_conv import convolved
from d2v.models.transformer import is_plain
from d2v.settings import check_values, setting
from d2v.types import Mask


@dataclass
class DecoderConfig:
    """Its shape; the published values per modality are in configs/."""

    dims: int = setting(1, "1: convolutions along the sequence; 2: over a square grid of tokens.", least=1, most=2)
    dim: int = setting(384, "Width of the layers.", least=1, limit=100_000)
    depth: int = setting(4, "Convolutions.", least=1, limit=1000)
    kernel: int = setting(7, "Tokens, or a side of the square of tokens, that a convolution sees.", least=1, limit=1000)
    groups: int = setting(16, "Groups of a convolution's channels.", least=1, limit=100_000)
    residual: bool = setting(True, "A residual around every layer whose input is as wide as its output.")
    head_layers: int = setting(1, "Linear layers after the convolutions.", least=1, limit=100)
    head_ratio: float = setting(
        2.0,
        "Width of the layers between them, as a multiple of dim.",
        least=0,
        limit=1000,
        only={"head_layers": lambda layers: layers > 1},
    )
    head_init: str = setting(
        "default", "How the head's weights start: torch's own, or like the trunk.", among=("default", "trunk")
    )
    dropout: float = setting(0.0, "Of the encoder's output.", least=0, below=1)
    noise: float = setting(0.01, "Standard deviation of what stands in hidden places.", least=0, limit=1000)

    def __post_init__(self):
        """ValueError: a number outside its bounds, an unknown choice, or groups or layers that do not fit the width."""
        check_values(self, "objective.decoder")
        if self.dim * self.head_ratio < 1:
            raise ValueError(
                f"objective.decoder.head_ratio is {self.head_ratio!r}; "
                f"it must be at least 1 / objective.decoder.dim, 1/{self.dim}"
            )
        if self.dim % self.groups:
            raise ValueError(
                f"objective.decoder.groups is {self.groups!r}; "
                f"it must be a divisor of objective.decoder.dim, {self.dim}"
            )


class ConvLayer(nn.Module):
    """Convolution that keeps the length -> layer norm over channels, without weights -> GELU."""

    def __init__(self, in_dim: int, config: DecoderConfig):
        super().__init__()
        self.grid = config.dims == 2
        make = nn.Conv2d if self.grid else nn.Conv1d
        self.conv = make(in_dim, config.dim, config.kernel, padding=config.kernel // 2, groups=config.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C_in) -> (N, T, C)."""
        if not self.grid:
            return convolved(self.conv, x)  # type: ignore[arg-type]
        side = math.isqrt(x.shape[1])
        # channels last in memory, and so are the weights: a tenth faster
        grid = x.unflatten(1, (side, side)).movedim(-1, 1)  # (N, C_in, side, side)
        if is_plain(self.conv, nn.Conv2d):
            weight = self.conv.weight.contiguous(memory_format=torch.channels_last)
            y = F.conv2d(grid, weight, self.conv.bias, padding=self.conv.padding, groups=self.conv.groups)
        else:
            y = self.conv(grid)
        y = y[..., :side, :side]  # an even kernel gives one row and one column too many
        y = y.flatten(2).transpose(1, 2)
        return F.gelu(F.layer_norm(y, y.shape[-1:]))


class Decoder(nn.Module):
    """From the visible tokens of a row to predictions at its hidden ones."""

    def __init__(self, dim: int, config: DecoderConfig, out_dim: int | None = None):
        """`out_dim`: width of a prediction; None: the model's. ValueError: the groups do not divide that."""
        super().__init__()
        if dim % config.groups:
            raise ValueError(f"objective.decoder.groups is {config.groups}; it must divide the trunk's width, {dim}")
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            ConvLayer(dim if number == 0 else config.dim, config) for number in range(config.depth)
        )
        between = [int(config.dim * config.head_ratio)] * (config.head_layers - 1)
        self.head = perceptron([config.dim, *between, out_dim or dim])

    def init_head(self, std: float) -> None:
        """N(0, std), biases zero; what is not called here is torch's default."""
        for linear in self.head:
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Mask, padding: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """Encoder output (N, K, D) -> (n, D), a prediction for each hidden token, or for those of `where` (N, T).

        Padded tokens (N, T) stay zero all along. ValueError: a grid that is not square.
        """
        assert mask.keep is not None
        x = self.places(self.dropout(x), mask.keep, mask.hidden.shape[1])  # (N, T, D)
        for layer in self.layers:
            x = x if padding is None else x.masked_fill(padding[..., None], 0)
            y = layer(x)  # (N, T, C)
            x = x + y if self.config.residual and x.shape == y.shape else y
        return self.head(x[mask.hidden if where is None else where])

    def places(self, x: Tensor, keep: Tensor, num_tokens: int) -> Tensor:
        """(N, K, D) -> (N, T, D): each token at its index in `keep` (N, K), fresh noise elsewhere.

        ValueError as in forward.
        """
        if self.config.dims == 2 and math.isqrt(num_tokens) ** 2 != num_tokens:
            raise ValueError(
                f"objective.decoder.dims is 2, but {num_tokens} tokens are no square grid; 1 reads them as a sequence"
            )
        noise = torch.randn(len(x), num_tokens, x.shape[2], device=x.device, dtype=x.dtype) * self.config.noise
        return noise.scatter(1, keep[..., None].expand_as(x), x)
