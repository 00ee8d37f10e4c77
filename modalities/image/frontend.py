"""Pixels -> patch tokens: a strided convolution, mask token and class token, and relative or absolute positions.

Or a whole network of timm, whose feature map is the tokens: see modalities/image/backbone.py.
B samples, N masked rows, C channels, S image size, R patches along a side, T = R * R patches, K visible patches,
E extra tokens, D width, H heads, L blocks.
Source: data2vec 1.0's vision code (BEiT), which has no absolute positions; learned ones as in ViT (arXiv 2010.11929).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2v.modalities.image import backbone
from d2v.models.positions import sincos
from d2v.models.transformer import precision_of
from d2v.settings import check_values, setting

MODALITY = "image"
ALONE = "model.trunk.depth=0 and model.trunk.input_norm=false"


@dataclass
class FrontendConfig:
    """What shapes the image frontend: patches that are embedded here, or a whole network of timm."""

    image_size: int = setting(224, "Pixels of a side of an image.", least=1, limit=16_384)
    patch_size: int = setting(
        16, "Pixels of a side of a patch; it divides image_size.", least=1, limit=16_384, only={"backbone": False}
    )
    channels: int = setting(3, "Channels of an image.", least=1, limit=10_000)
    relative_bias: bool = setting(True, "Attention has a learned bias for each offset of two patches.")
    bias_layers: int = setting(
        1,
        "1: all blocks share the relative bias; the trunk's depth: each has its own (BEiT's fine-tuned models).",
        least=1,
        limit=1000,
        only={"backbone": False},
    )
    class_token: bool = setting(True, "A learned token stands before the patches.")
    positions: str = setting(
        "none",
        "none: the relative bias alone; sincos: fixed, added to the patches (data2vec 2.0); "
        "learned: for the class token too.",
        among=("none", "sincos", "learned"),
        only={"backbone": False},
    )
    mask_token: bool = setting(True, "false: what is hidden is zero, or left out (data2vec 2.0).")
    init: str = setting(
        "normal",
        "normal: N(0, init_std), cut at one std; xavier: uniform patches (data2vec 2.0, MAE).",
        among=("normal", "xavier"),
        only={"backbone": False},
    )
    class_token_std: float = setting(
        1.0,
        "Standard deviation of the class token where init is xavier: 1 in data2vec 2.0, 0.02 in MAE.",
        least=0,
        limit=1000,
        only={"backbone": False, "init": "xavier", "class_token": True},
    )
    init_std: float = setting(
        0.02,
        "Standard deviation of initial weights where init is normal.",
        least=0,
        limit=1000,
        only=[{"backbone": False, "init": "normal"}, {"backbone": False, "mask_token": True}, {"positions": "learned"}],
    )
    backbone: str = setting(
        "",
        "A network by timm's name (resnet50, vit_small_patch16_224) in place of all this, and of the trunk; "
        "never pretrained.",
    )
    small_stem: bool = setting(
        False,
        "Of a ResNet: its first convolution is 3 x 3 without stride and nothing is pooled after it, "
        "for images of 32 pixels.",
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense, or what a backbone cannot have. A backbone has no extra parts."""
        check_values(self, "model.frontends.image")
        if self.bias_layers > 1 and not self.relative_bias:
            raise ValueError(f"frontend bias_layers={self.bias_layers} must be at least 1, and 1 without relative_bias")
        if self.small_stem and not self.backbone:
            raise ValueError("frontend small_stem=True is of a ResNet: set backbone, e.g. backbone=resnet18")
        if self.backbone:
            for name, value in (("bias_layers", 1), ("positions", "none"), ("init", "normal")):
                if getattr(self, name) != value:
                    raise ValueError(
                        f"frontend {name}={getattr(self, name)!r} is of patches that are embedded here; "
                        f"backbone={self.backbone} has its own"
                    )
            self.relative_bias = self.class_token = self.mask_token = False

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row. ValueError: they do not tile the image."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        return self.image_size // self.patch_size, self.image_size // self.patch_size


@lru_cache(maxsize=8)
def relative_index(rows: int, columns: int, class_token: bool, device: torch.device) -> Tensor:
    """Row of the bias table for each (query, key), long, (E + T, E + T).

    Patches: by row and column offset. Then three more rows: class to patch, patch to class, class to class.
    """
    # the cached tensor may first be asked for in inference and then be used in training
    with torch.inference_mode(False):
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        row, column = row.flatten(), column.flatten()  # (T,)
        index = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1  # (T, T)
        if class_token:
            offsets = (2 * rows - 1) * (2 * columns - 1)
            index = F.pad(index, (1, 0, 1, 0))  # (1 + T, 1 + T)
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        return index


def resized(positions: Tensor, old: int, new: int) -> Tensor:
    """Learned positions (old * old, D) -> (new * new, D), bicubic, in float32.

    The 0.1 keeps the size from being rounded down (DINO's code).
    """
    image = positions.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]  # (1, D, R, R)
    return F.interpolate(image, scale_factor=(new + 0.1) / old, mode="bicubic")[0].flatten(1).T


def _resampled(table: Tensor, grid: tuple[int, int], num_extra: int) -> Tensor:
    """A table of positions (1, E + T, D) for another grid, by a bicubic filter as in timm."""
    from timm.layers import resample_abs_pos_embed  # seconds that those who need none need not wait

    return resample_abs_pos_embed(table, list(grid), num_prefix_tokens=int(num_extra))


def _rescaled(tables: Tensor, grid: tuple[int, int], shape: torch.Size) -> Tensor:
    """Tables of relative biases, (offsets, H) or one a block, for another grid: `shape`, interpolated as in BEiT."""
    from timm.layers import resize_rel_pos_bias_table

    flat = tables.view(-1, *tables.shape[-2:])
    return torch.stack([resize_rel_pos_bias_table(table, grid, shape[-2:]) for table in flat]).view(shape)


class Frontend(nn.Module):
    """Patch embedding of square images of one size; while it is trained, of other sizes too (multi-crop)."""

    main_input: ClassVar[str] = "pixel_values"
    zero_padding: ClassVar[bool] = True
    positions_read_tokens: ClassVar[bool] = False

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: patches that do not tile an image, or a width that sincos positions or backbone do not have."""
        super().__init__()
        if config.positions == "sincos" and dim % 4:
            raise ValueError(f"sincos positions need a width that is a multiple of 4; model.trunk.dim is {dim}")
        self.config, self.source_dim = config, dim
        self.backbone = self._make_backbone() if config.backbone else None
        if self.backbone is None:
            self.grid = config.grid
            self.patch_embed = nn.Conv2d(config.channels, dim, config.patch_size, stride=config.patch_size)
        else:
            *grid, width = backbone.survey(self.backbone, config.channels, config.image_size)
            self.grid = (grid[0], grid[1])
            self.backbone.to(torch.get_default_device())
            if width != dim:
                raise ValueError(
                    f"backbone={config.backbone} gives {width} features: "
                    f"set model.trunk.dim={width} (it is {dim}), {ALONE}"
                )
        self.mask_token = nn.Parameter(torch.zeros(dim)) if config.mask_token else None
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        num_offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3 * config.class_token
        layers = () if config.bias_layers == 1 else (config.bias_layers,)
        self.bias_table = nn.Parameter(torch.zeros(*layers, num_offsets, num_heads)) if config.relative_bias else None
        num_places = self.grid[0] * self.grid[1] + config.class_token  # the class token's place is first
        self.position_table = nn.Parameter(torch.zeros(num_places, dim)) if config.positions == "learned" else None

    def init_weights(self) -> None:
        """As the config says; the bias table is zero.

        A normal is cut at one standard deviation, as in the reference's helper.
        """
        if self.backbone is not None:
            backbone.reset(self.backbone, self._make_backbone())
            return
        std, xavier = self.config.init_std, self.config.init == "xavier"
        if xavier:
            bound = (6 / (len(self.patch_embed.weight) + self.patch_embed.weight[0].numel())) ** 0.5
            nn.init.uniform_(self.patch_embed.weight, -bound, bound)
            if self.class_token is not None:
                nn.init.normal_(self.class_token, std=self.config.class_token_std)
        normal = [self.mask_token, self.patch_embed.weight, self.class_token, self.position_table]
        if xavier:
            normal = [self.mask_token, self.position_table]
        for weight in normal:
            if weight is not None:
                nn.init.trunc_normal_(weight, std=std, a=-std, b=std)
        nn.init.zeros_(self.patch_embed.bias)
        if xavier:  # torch's own, which the reference left in place
            bound = self.patch_embed.weight[0].numel() ** -0.5
            nn.init.uniform_(self.patch_embed.bias, -bound, bound)
        if self.bias_table is not None:
            nn.init.zeros_(self.bias_table)

    @torch.no_grad()
    def resize_from(self, other: "Frontend") -> None:
        """Fills its weights with those of a frontend for images of another size.

        A table of positions is resized by a bicubic filter, relative biases as BEiT does it; sincos is computed anew.
        """
        state, own = other.state_dict(), self.state_dict()
        if self.position_table is not None:
            state["position_table"] = _resampled(
                state["position_table"][None], self.grid, self.class_token is not None
            )[0]
        if self.bias_table is not None:
            state["bias_table"] = _rescaled(state["bias_table"], self.grid, self.bias_table.shape)
        inner = "backbone.pos_embed"  # of a ViT
        if inner in state and state[inner].shape != own[inner].shape:
            state[inner] = _resampled(state[inner], self.grid, self.backbone.num_prefix_tokens)
        self.load_state_dict(state)

    def _make_backbone(self) -> nn.Module:
        config = self.config
        return backbone.make(
            config.backbone, channels=config.channels, image_size=config.image_size, small_stem=config.small_stem
        )

    @property
    def is_encoder(self) -> bool:
        """Whether its tokens are features already, to which a trunk has nothing to add."""
        return self.backbone is not None

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, D), patches row by row.

        ValueError: another number of channels or another size; in training see `_reads`.
        """
        if not self._reads(pixel_values):
            size, patch, shape = self.config.image_size, self.config.patch_size, tuple(pixel_values.shape)
            others = ""
            if self.training and self.backbone is None:
                others = f", and in training other squares of {patch} x {patch} pixels"
                others += " that are smaller" if self.bias_table is not None else ""
            raise ValueError(
                f"pixel_values of shape {shape}: "
                f"this model reads (batch, {self.config.channels}, {size}, {size}){others}"
            )
        if pixel_values.is_floating_point():  # processors give float32; bytes are no pixels that a model reads
            pixel_values = pixel_values.to(next(self.parameters()).dtype)
        if self.backbone is not None:
            return backbone.feature_map(self.backbone, pixel_values).flatten(1, 2)
        return self.patch_embed(pixel_values).flatten(2).transpose(1, 2)  # (B, T, D)

    def content_dim(self) -> int:
        """Numbers of a patch. ValueError: a backbone, whose tokens are no patches."""
        if self.backbone is not None:
            raise ValueError(
                f"backbone={self.config.backbone} has no patches whose pixels could be predicted; leave it out"
            )
        return self.config.channels * self.config.patch_size**2

    def content(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, P), the pixels of each patch: row by row, the channels of a pixel side by side (MAE).

        ValueError as of `content_dim`.
        """
        size = self.config.patch_size
        patches = pixel_values.float().unfold(2, size, size).unfold(3, size, size)  # (B, C, R, R, size, size)
        return patches.permute(0, 2, 3, 4, 5, 1).reshape(len(patches), -1, self.content_dim())

    def vocabulary(self) -> Tensor:
        """ValueError: patches are no words."""
        raise ValueError("an image has no words to predict: objective.name may be mae, beit or best_rq")

    def sources(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `embed`, three times: nothing lies before the tokens that a method could quantise instead."""
        tokens = self.embed(pixel_values)
        return tokens, tokens, tokens

    def _reads(self, pixel_values: Tensor) -> bool:
        """Images of the model's size; in training, where a batch may hold smaller crops, other squares too.

        If positions are relative, these are smaller.
        """
        size = self.config.image_size
        channels, *sides = pixel_values.shape[1:]
        if channels != self.config.channels or len(sides) != 2 or sides[0] != sides[1]:
            return False
        if sides[0] == size or not self.training:
            return sides[0] == size
        fits = sides[0] >= self.config.patch_size and sides[0] % self.config.patch_size == 0
        return self.backbone is not None or (fits and (self.bias_table is None or sides[0] < size))

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D) with the mask token, or zero, where hidden.

        ValueError: a backbone has mixed the tokens.
        """
        if self.backbone is not None:
            raise ValueError(
                f"backbone={self.config.backbone} mixes all tokens: nothing can be hidden behind it; "
                "objectives with masks need patches"
            )
        if self.mask_token is None:
            return tokens.masked_fill(hidden[..., None], 0)
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor | None:
        """(T, D) to be added to tokens, or None where positions are in the attention bias alone.

        As exact as the weights: the sum with tokens that autocast has rounded is float32.
        """
        grid = self._grid_of(tokens.shape[1])
        if self.position_table is not None:
            learned = self.position_table[int(self.class_token is not None) :]
            return learned if grid == self.grid else resized(learned, self.grid[0], grid[0]).to(learned.dtype)
        if self.config.positions == "sincos":
            return sincos(grid, tokens.shape[-1], tokens.device).to(self.patch_embed.weight.dtype)
        return None

    def _grid_of(self, num_tokens: int | None) -> tuple[int, int]:
        """Patches along the sides of a square image of `num_tokens`; None: of an image of the model's size."""
        if num_tokens is None or num_tokens == self.grid[0] * self.grid[1]:
            return self.grid
        return isqrt(num_tokens), isqrt(num_tokens)

    def extra(self) -> Tensor | None:
        """The class token in its place, (1, 1, D)."""
        if self.class_token is None or self.position_table is None:
            return self.class_token
        return self.class_token + self.position_table[:1]

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """What is added to the attention logits of every block: (H, E + T, E + T).

        Of the patches `keep` (N, K): (N, H, E + K, E + K). With a table per block (L, N or 1, H, ...).
        """
        if self.bias_table is None:
            return None
        index, num_extra = self.bias_index(num_tokens), int(self.class_token is not None)
        if keep is not None:
            kept = F.pad(keep + num_extra, (num_extra, 0))  # (N, E + K)
            index = index[kept[:, :, None], kept[:, None, :]]  # (N, E + K, E + K)
        tables = self.bias_table.to(precision_of(self.bias_table))
        if tables.ndim == 2:
            return F.embedding(index, tables).movedim(-1, -3)
        index = index if index.ndim == 3 else index[None]
        return torch.stack([F.embedding(index, table) for table in tables]).movedim(-1, -3)

    def bias_index(self, num_tokens: int | None = None) -> Tensor:
        """Row of the bias table for each (query, key), (E + T, E + T).

        A smaller image has the offsets of a corner of one of the model's size.
        """
        index = relative_index(*self.grid, self.class_token is not None, self.patch_embed.weight.device)
        rows, columns = self._grid_of(num_tokens)
        if (rows, columns) == self.grid:
            return index
        num_extra = int(self.class_token is not None)
        row, column = (torch.arange(side, device=index.device) for side in (rows, columns))
        corner = num_extra + (row[:, None] * self.grid[1] + column).flatten()  # (T,)
        corner = F.pad(corner, (num_extra, 0))  # the class token is number 0
        return index[corner[:, None], corner]

    def padding(self, pixel_values: Tensor) -> None:
        """Images are never padded."""
