"""Predictors from the tokens that an encoder has read to some that it has not: plain blocks, or cross-attention alone.

B samples, R rows of context, N rows of targets (N = R * M), T tokens, K read, J wanted, n wanted in all, D model width,
P predictor width, H heads. Sources: I-JEPA (arXiv 2301.08243), section 3; CAPI (arXiv 2502.08769), section 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models import positions
from d2v.models.transformer import MLP, Trunk, attention_bias, through
from d2v.models.trunk_config import TrunkConfig
from d2v.settings import check_values, setting
from d2v.types import Mask


@dataclass
class PredictorConfig:
    """Its shape; the published one."""

    dim: int = setting(384, "Width of its tokens.", least=4, limit=1_000_000)
    depth: int = setting(6, "Blocks.", least=1, limit=200)
    num_heads: int = setting(12, "Heads of attention; they divide the width.", least=1, limit=10_000)

    def __post_init__(self):
        """ValueError: a number outside its bounds, or a width that heads or positions do not divide."""
        check_values(self, "objective.predictor")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"objective.predictor.dim is {self.dim}; it must be a multiple of objective.predictor.num_heads, "
                f"{self.num_heads}, and of 4"
            )


class Predictor(nn.Module):
    """Context and mask tokens, each with its fixed position, through blocks of attention; a linear layer back."""

    def __init__(self, dim: int, config: PredictorConfig):
        super().__init__()
        width = config.dim
        self.inputs = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        blocks = TrunkConfig(
            depth=config.depth,
            dim=width,
            num_heads=config.num_heads,
            mlp_dim=4 * width,
            pre_norm=True,
            input_norm=False,
            final_norm=True,
            norm_eps=1e-6,
        )
        self.trunk = Trunk(blocks)
        self.trunk.init_weights()
        self.outputs = nn.Linear(width, dim)
        for linear in (self.inputs, self.outputs):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Mask, padding: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
        """Tokens `keep` (R, K, D) of each context -> (n, D), what stands at the hidden tokens of its M rows.

        Each row of targets is a sequence of its own: they do not see each other. `padding` (B, T) tokens are passed
        over. `grid`: how all T tokens lie; None: in a sequence.
        """
        keep, hidden = mask.keep, mask.hidden
        assert keep is not None
        rows, tokens = hidden.shape
        where = positions.fixed(tokens, grid, self.mask_token.numel(), x.device)  # (T, P)
        context = through(self.inputs, x) + where[keep]  # (R, K, P)
        places, wanted, order = places_of(mask)
        queries = self.mask_token + where[places]  # (N, J, P)
        sequence = torch.cat([_repeated(context, rows), queries.to(context.dtype)], dim=1)  # (N, K + J, P)
        unread = padding_of(keep, padding)  # (R, K)
        ignored = torch.cat([_repeated(unread, rows), ~wanted], dim=1)  # (N, K + J)
        some = len(order[0]) < wanted.numel()
        if not some and padding is not None:  # a device is not asked
            some = unread.device.type != "cpu" or bool(unread.any())
        out, _ = self.trunk(sequence, attention_bias(ignored if some else None, None))
        return through(self.outputs, out[:, keep.shape[1] :][order])


@dataclass
class CrossConfig:
    """The shape of a predictor whose blocks look at the context alone; its width is the encoder's."""

    depth: int = setting(12, "Blocks.", least=1, limit=200)

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_values(self, "objective.predictor")


class CrossBlock(nn.Module):
    """Attention from each query to the context, which stays as it is, and an MLP; both pre-norm."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, norm_eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, norm_eps), nn.LayerNorm(dim, norm_eps)
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = MLP(dim, mlp_dim, 0.0)
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """Queries (N, J, D), context (N, K, D), True where it may be looked at (N, 1, 1, K) -> (N, J, D)."""
        query = self._heads(through(self.query, self.norm1(x)))
        key, value = (self._heads(part) for part in through(self.key_value, context).chunk(2, dim=-1))
        seen = F.scaled_dot_product_attention(query, key, value, bias)  # (N, H, J, D / H)
        x = x + through(self.proj, seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class CrossPredictor(nn.Module):
    """CAPI's (arXiv 2502.08769, section 3): what it says of a token does not depend on which others are asked for.

    Positions are fixed and added, to queries and to the context, where the paper rotates them.
    """

    def __init__(self, trunk: TrunkConfig, config: CrossConfig):
        super().__init__()
        dim = trunk.dim
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(
            CrossBlock(dim, trunk.num_heads, trunk.mlp_dim, trunk.norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, trunk.norm_eps)

    def forward(self, x: Tensor, mask: Mask, padding: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
        """As Predictor: (R, K, D) -> (n, D) for the tokens that are hidden in the mask (N, T)."""
        keep, rows = mask.keep, len(mask.hidden)
        assert keep is not None
        where = positions.fixed(mask.hidden.shape[1], grid, x.shape[-1], x.device)  # (T, D)
        context = _repeated(F.layer_norm(x, x.shape[-1:]) + where[keep], rows)  # (N, K, D)
        unread = padding_of(keep, padding)
        bias = attention_bias(_repeated(unread, rows), None) if padding is not None else None
        places, _, order = places_of(mask)
        queries = self.mask_token + where[places]  # (N, J, D)
        for block in self.blocks:
            queries = block(queries, context, bias)
        return self.norm(queries)[order]


def places_of(mask: Mask) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Where the hidden tokens of each row are, (N, J); which of the J are such places, (N, J) bool; and, as indices
    (n,) of rows and of the J, these in their order.

    Rows with fewer than J have others behind. No device is waited for if the mask came from the CPU.
    """
    hidden, device = mask.known, mask.hidden.device
    counts = hidden.sum(dim=1)  # (N,)
    most = int(counts.max())  # J
    places = hidden.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (N, J), hidden ones first
    wanted = torch.arange(most, device=hidden.device) < counts[:, None]
    row, number = wanted.nonzero(as_tuple=True)
    places, wanted, row, number = (x.to(device, non_blocking=True) for x in (places, wanted, row, number))
    return places, wanted, (row, number)


def padding_of(keep: Tensor, padding: Tensor | None) -> Tensor:
    """Which of the tokens `keep` (R, K) are padding (B, T): (R, K) bool."""
    if padding is None:
        return torch.zeros_like(keep, dtype=torch.bool)
    return _repeated(padding, len(keep)).gather(1, keep)


def _repeated(x: Tensor, rows: int) -> Tensor:
    """(R, ...) -> (N, ...), the M rows of a context next to each other."""
    return x.repeat_interleave(rows // len(x), dim=0)
