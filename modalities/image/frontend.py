"""Pixels -> patch tokens: a strided convolution, a mask token, a class token, and a relative position bias or absolute positions.

B samples, N masked rows, C channels, S image size, R patches along a side, T = R * R patches, E extra tokens, D width, H heads, L blocks.
Source: data2vec 1.0's vision code (BEiT), which has no absolute positions; learned ones as in ViT (arXiv 2010.11929).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODALITY = "image"


@dataclass
class FrontendConfig:
    """What shapes the image frontend."""

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    relative_bias: bool = True
    bias_layers: int = 1  # 1: all blocks share the relative bias; the trunk's depth: each has its own (BEiT's fine-tuned models)
    class_token: bool = True
    positions: str = "none"  # none: the relative bias alone; sincos: fixed, added to the patches (data2vec 2.0); learned: for the class token too
    mask_token: bool = True  # false: what is hidden is zero, or left out (data2vec 2.0)
    init: str = "normal"  # normal: N(0, init_std), cut at one std; xavier: uniform patches and a class token N(0, 1) (data2vec 2.0)
    init_std: float = 0.02

    def __post_init__(self):
        """ValueError: unknown positions, an unknown init, or no layers for the bias."""
        if self.init not in ("normal", "xavier"):
            raise ValueError(f"frontend init={self.init!r} is not known; allowed are normal, xavier")
        if self.positions not in ("none", "sincos", "learned"):
            raise ValueError(f"frontend positions={self.positions!r} is not known; allowed are none, sincos, learned")
        if self.bias_layers < 1 or (self.bias_layers > 1 and not self.relative_bias):
            raise ValueError(f"frontend bias_layers={self.bias_layers} must be at least 1, and 1 without relative_bias")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row. ValueError: they do not tile the image."""
        if self.patch_size < 1 or self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        return self.image_size // self.patch_size, self.image_size // self.patch_size


@lru_cache(maxsize=8)
def relative_index(rows: int, columns: int, class_token: bool, device: torch.device) -> Tensor:
    """Row of the bias table for each (query, key), long, (E + T, E + T).

    Patches: by row and column offset. Then three more rows: class to patch, patch to class, class to class.
    """
    with torch.inference_mode(False):  # the cached tensor may first be asked for in inference and then be used in training
        row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        row, column = row.flatten(), column.flatten()  # (T,)
        index = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1  # (T, T)
        if class_token:
            offsets = (2 * rows - 1) * (2 * columns - 1)
            index = F.pad(index, (1, 0, 1, 0))  # (1 + T, 1 + T)
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        return index


@lru_cache(maxsize=8)
def sincos(rows: int, columns: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions (T, D) of data2vec 2.0 and MAE (arXiv 2111.06377): sine and cosine of the column, then of the row."""
    with torch.inference_mode(False):
        rates = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))  # (D / 4,)
        row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        angles = [axis.reshape(-1, 1) * rates for axis in (column, row)]  # (T, D / 4) each
        return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


class Frontend(nn.Module):
    """Patch embedding of images of one size."""

    main_input: ClassVar[str] = "pixel_values"
    zero_padding: ClassVar[bool] = True
    positions_read_tokens: ClassVar[bool] = False

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: the patches do not tile the image, or a width that sincos positions cannot have."""
        super().__init__()
        if config.positions == "sincos" and dim % 4:
            raise ValueError(f"sincos positions need a width that is a multiple of 4; model.trunk.dim is {dim}")
        self.config, self.grid = config, config.grid
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch_size, stride=config.patch_size)
        self.mask_token = nn.Parameter(torch.zeros(dim)) if config.mask_token else None
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        num_offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3 * config.class_token
        layers = () if config.bias_layers == 1 else (config.bias_layers,)
        self.bias_table = nn.Parameter(torch.zeros(*layers, num_offsets, num_heads)) if config.relative_bias else None
        num_places = self.grid[0] * self.grid[1] + config.class_token  # the class token's place is first
        self.position_table = nn.Parameter(torch.zeros(num_places, dim)) if config.positions == "learned" else None

    def init_weights(self) -> None:
        """As the config says; the bias table is zero. A normal is cut at one standard deviation, as in the reference's own helper."""
        std, xavier = self.config.init_std, self.config.init == "xavier"
        if xavier:
            bound = (6 / (len(self.patch_embed.weight) + self.patch_embed.weight[0].numel())) ** 0.5
            nn.init.uniform_(self.patch_embed.weight, -bound, bound)
            if self.class_token is not None:
                nn.init.normal_(self.class_token)
        for weight in (self.mask_token, *(() if xavier else (self.patch_embed.weight, self.class_token)), self.position_table):
            if weight is not None:
                nn.init.trunc_normal_(weight, std=std, a=-std, b=std)
        nn.init.zeros_(self.patch_embed.bias)
        if xavier:  # torch's own, which the reference left in place
            bound = self.patch_embed.weight[0].numel() ** -0.5
            nn.init.uniform_(self.patch_embed.bias, -bound, bound)
        if self.bias_table is not None:
            nn.init.zeros_(self.bias_table)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, D), patches row by row. ValueError: another number of channels or another size."""
        size = self.config.image_size
        if pixel_values.shape[1:] != (self.config.channels, size, size):
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values of shape {shape}: this model reads (batch, {self.config.channels}, {size}, {size})")
        return self.patch_embed(pixel_values).flatten(2).transpose(1, 2)  # (B, T, D)

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D) with the mask token, or zero, where hidden."""
        if self.mask_token is None:
            return tokens.masked_fill(hidden[..., None], 0)
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor | None:
        """(T, D) to be added to tokens, or None where positions are in the attention bias alone."""
        if self.position_table is not None:
            return self.position_table[int(self.class_token is not None) :].to(tokens.dtype)
        return sincos(*self.grid, tokens.shape[-1], tokens.device).to(tokens.dtype) if self.config.positions == "sincos" else None

    def extra(self) -> Tensor | None:
        """The class token in its place, (1, 1, D)."""
        if self.class_token is None or self.position_table is None:
            return self.class_token
        return self.class_token + self.position_table[:1]

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """(H, E + T, E + T), or (N, H, E + K, E + K) of the patches `keep` (N, K): to be added to the attention logits of every block.

        With a table per block (L, N or 1, H, ...).
        """
        if self.bias_table is None:
            return None
        index, num_extra = self.bias_index(), int(self.class_token is not None)
        if keep is not None:
            kept = F.pad(keep + num_extra, (num_extra, 0))  # (N, E + K)
            index = index[kept[:, :, None], kept[:, None, :]]  # (N, E + K, E + K)
        if self.bias_table.ndim == 2:
            return F.embedding(index, self.bias_table).movedim(-1, -3)
        index = index if index.ndim == 3 else index[None]
        return torch.stack([F.embedding(index, table) for table in self.bias_table]).movedim(-1, -3)

    def bias_index(self) -> Tensor:
        """Row of the bias table for each (query, key), (E + T, E + T)."""
        return relative_index(*self.grid, self.class_token is not None, self.patch_embed.weight.device)

    def padding(self, pixel_values: Tensor) -> None:
        """Images are never padded."""
