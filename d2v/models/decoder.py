"""Decoders from visible to hidden tokens: data2vec 2.0's convolutions, and MAE's narrow Transformer.

N rows (samples x masks), T tokens, K visible tokens, E extra tokens, n hidden tokens in all, D model width, C decoder
width, P numbers that a token is made of.
Sources: data2vec 2.0 (arXiv 2212.07525) section 3; its convolutions are along the sequence for speech and text, over
the grid for images. MAE (arXiv 2111.06377) section 3.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.encoder import hidden_at
from d2v.models.heads import perceptron
from d2v.models.positions import sincos
from d2v.models.token_conv import convolved
from d2v.models.transformer import Trunk, attention_bias, is_plain, taken, through
from d2v.models.trunk_config import TrunkConfig
from d2v.settings import check_values, setting
from d2v.types import Features, Mask


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
    """data2vec 2.0's: from the visible tokens of a row to predictions at its hidden ones."""

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
        """Encoder output (N, K, D) -> (n, D), a prediction for each hidden token, or for those of the numbers `where`
        (n,), row * T + place.

        Padded tokens (N, T) stay zero all along. ValueError: a grid that is not square.
        """
        assert mask.keep is not None
        x = self.places(self.dropout(x), mask.keep, mask.hidden.shape[1])  # (N, T, D)
        for layer in self.layers:
            x = x if padding is None else x.masked_fill(padding[..., None], 0)
            y = layer(x)  # (N, T, C)
            x = x + y if self.config.residual and x.shape == y.shape else y
        return self.head(taken(x, hidden_at(mask) if where is None else where))

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


@dataclass
class BlockDecoderConfig:
    """The shape of a Transformer that reads visible tokens and mask tokens; the published values."""

    dim: int = setting(512, "Width of the blocks; a multiple of 4.", least=4, limit=100_000)
    depth: int = setting(8, "Blocks, pre-norm.", least=1, limit=1000)
    num_heads: int = setting(16, "Heads of attention; they divide the width.", least=1, limit=10_000)

    def __post_init__(self):
        """ValueError: a number outside its bounds, or a width that heads or positions do not divide."""
        check_values(self, "objective.decoder")
        for divisor, what in ((self.num_heads, "objective.decoder.num_heads"), (4, "4, for sines and cosines")):
            if self.dim % divisor:
                raise ValueError(f"objective.decoder.dim is {self.dim}; it must be a multiple of {what}, {divisor}")


class BlockDecoder(nn.Module):
    """MAE's: a linear map to a narrow width, mask tokens in hidden places, fixed positions, blocks, a linear head."""

    def __init__(self, dim: int, out_dim: int, config: BlockDecoderConfig, *, norm_eps: float):
        """`norm_eps`: of the blocks' norms, that of the encoder's trunk."""
        super().__init__()
        self.project = nn.Linear(dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(config.dim))
        self.trunk = Trunk(
            TrunkConfig(
                depth=config.depth,
                dim=config.dim,
                num_heads=config.num_heads,
                mlp_dim=4 * config.dim,
                pre_norm=True,
                norm_eps=norm_eps,
                input_norm=False,
                final_norm=True,
                init="xavier",
            )
        )
        self.head = nn.Linear(config.dim, out_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier's uniform, biases zero; the mask token N(0, 0.02)."""
        self.trunk.init_weights()
        for linear in (self.project, self.head):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, features: Features, mask: Mask, grid: tuple[int, int] | None, padding: Tensor | None = None
    ) -> Tensor:
        """Features (N, K, D) and extra tokens (N, E, D) -> (n, P), a prediction for each hidden token.

        `grid`: rows and columns of tokens, None where they are a sequence. Padded tokens (N, T) are not attended to.
        """
        assert mask.keep is not None
        N, T = mask.hidden.shape  # noqa: N806
        x = through(self.project, features.x)  # (N, K, C)
        blank = self.mask_token.to(x.dtype).expand(N, T, -1)
        x = blank.scatter(1, mask.keep[..., None].expand_as(x), x)  # (N, T, C)
        x = x + sincos((T,) if grid is None else grid, x.shape[2], x.device).to(self.mask_token.dtype)
        only = hidden_at(mask)
        if features.extra is not None:
            num_extra = features.extra.shape[1]
            x = torch.cat([through(self.project, features.extra), x], dim=1)  # (N, E + T, C)
            only = only + (only // T + 1) * num_extra
            padding = None if padding is None else F.pad(padding, (num_extra, 0))
        x, _ = self.trunk(x, attention_bias(padding, None), only=only)  # (n, C)
        return through(self.head, x)
